"""Recommendations for e-commerce, from raw sales files to a gated model that answers."""

import os

# Commands, tasks of Airflow and servers alike compute with one thread unless told otherwise: on a busy machine threads
# that wait for each other cost a multiple of the work. Here, for numpy and torch read it when they are imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
