"""What features there are. Schemas follow from the expressions in recflow.features: nothing is listed here."""

from data_sources import item_sales_stats_source, user_history_source, user_purchase_stats_source, views
from entities import item, user

from recflow import featurestore

user_purchase_stats = featurestore.feature_view(views["user_purchase_stats"], user, user_purchase_stats_source)
item_sales_stats = featurestore.feature_view(views["item_sales_stats"], item, item_sales_stats_source)
user_history = featurestore.feature_view(views["user_history"], user, user_history_source)
