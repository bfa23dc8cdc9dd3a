"""materialize: the last day's snapshot -> the online store."""

from recflow import featurestore
from recflow.features.views import declared_views
from recflow.onlinestore import materialized_through
from recflow.schema import Days
from recflow.settings import Settings
from recflow.storage import Artifact


def materialize(days: Days, settings: Settings) -> Artifact:
    """Register the views as they are declared now, and write the last of the days into the online store.

    Users who were active on any day since the last one written get their history; everybody's features are written,
    because windows move with each day.
    """
    register(settings)
    rows = featurestore.materialize(days.end, settings)
    through = materialized_through(settings)
    return Artifact(f"{settings.home.absolute() / 'feast'}", {"days": str(days), "through": str(through), "rows": rows})


def register(settings: Settings) -> None:
    """Register the views as they are declared now; no rows are written."""
    featurestore.apply(declared_views(), settings)
