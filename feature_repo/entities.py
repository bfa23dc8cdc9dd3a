"""Whom features describe."""

from recflow import featurestore

user = featurestore.entity("user_id")
item = featurestore.entity("item_id")
