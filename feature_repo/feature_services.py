"""What a model is fed."""

from feature_views import item_sales_stats, user_history, user_purchase_stats

from recflow import featurestore

recommender_v1 = featurestore.feature_service([user_purchase_stats, item_sales_stats, user_history])
