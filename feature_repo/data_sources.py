"""Where features lie: one table of the lake per view, a Parquet object a day."""

from recflow import featurestore
from recflow.features.views import declared_views
from recflow.settings import load_settings

settings = load_settings()
settings.home.mkdir(parents=True, exist_ok=True)  # Feast makes one folder for its registry, not its parents
views = {view.name: view for view in declared_views()}

user_purchase_stats_source = featurestore.data_source(views["user_purchase_stats"], settings)
item_sales_stats_source = featurestore.data_source(views["item_sales_stats"], settings)
user_history_source = featurestore.data_source(views["user_history"], settings)
