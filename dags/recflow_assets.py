"""The nouns that join the DAGs. An event's `extra` carries the day: asset-triggered runs have no logical date."""

from airflow.sdk import Asset

# extra {"until": "2011-11-30"}: snapshots of users and items through that day are in the lake and online
FEATURES = Asset("features", uri="recflow://features")

# extra {"until": ...}: the drift report through that day asks for a new model
RETRAINING = Asset("retraining", uri="recflow://retraining")

# extra {"until": ...}: the candidate trained on data through that day passed every rule of the gate
GATED_MODEL = Asset("gated_model", uri="recflow://gated_model")

# extra {"version": "3"}: what the alias `champion` points at
CHAMPION = Asset("champion", uri="recflow://champion")
