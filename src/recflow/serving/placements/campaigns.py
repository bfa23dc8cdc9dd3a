"""Campaigns that a shopper may see: sets of items with a period and an audience, scored by the shopper's own scores."""

from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
from pydantic import TypeAdapter

from recflow.errors import RecflowError
from recflow.schema import EVENT_TYPES
from recflow.serving.answers import Promotion, PromotionsAnswer, StoredCampaign, new_request_id
from recflow.serving.bundle import Bundle
from recflow.serving.kept import KeptFile
from recflow.serving.placements.groups import Taste, reason_of
from recflow.serving.placements.segments import standing
from recflow.serving.recommend import Ranked, Recommender, moment
from recflow.serving.requests import Audience, Campaign, PromotionsRequest
from recflow.serving.shopper import Shopper
from recflow.settings import Settings

MAX_CAMPAIGNS = 1_000
_BOUGHT = EVENT_TYPES[EVENT_TYPES.index("purchase")]
_CAMPAIGNS = TypeAdapter(tuple[Campaign, ...])


class TooManyCampaigns(RecflowError):
    """The catalogue holds as many campaigns as it may."""


class CampaignCatalogue:
    """The campaigns of a shop, in `<home>/campaigns.json`."""

    def __init__(self, settings: Settings) -> None:
        """Take the place; nothing is read yet."""
        self._file = KeptFile(settings.home.absolute() / "campaigns.json", _CAMPAIGNS, empty=())

    def all(self) -> tuple[Campaign, ...]:
        """Return every campaign as the newest file has them, whichever worker wrote it; a look takes microseconds.

        Raises:
            RecflowError: the file can't be read.
        """
        return self._file.read()

    def put(self, campaigns: Sequence[Campaign]) -> None:
        """Add campaigns; one with a known id takes the old one's place. On disk when this returns.

        Raises:
            TooManyCampaigns: there would be more than `MAX_CAMPAIGNS`; none was taken.
        """
        with self._file.alone():
            kept = {campaign.campaign_id: campaign for campaign in (*self.all(), *campaigns)}
            if len(kept) > MAX_CAMPAIGNS:
                raise TooManyCampaigns(
                    f"The catalogue holds {MAX_CAMPAIGNS} campaigns at most; with these it would be {len(kept)}. "
                    "Delete those that are over."
                )
            self._file.write(tuple(kept.values()))

    def remove(self, campaign_id: str) -> bool:
        """Take a campaign out; return whether it was there."""
        with self._file.alone():
            kept = tuple(campaign for campaign in self.all() if campaign.campaign_id != campaign_id)
            is_found = len(kept) < len(self.all())
            if is_found:
                self._file.write(kept)
        return is_found


def described(campaign: Campaign, bundle: Bundle | None) -> StoredCampaign:
    """Return a campaign as it is answered."""
    return StoredCampaign(
        campaign_id=campaign.campaign_id,
        title=campaign.title,
        item_ids=list(campaign.item_ids),
        starts_at=campaign.starts_at.isoformat(),
        ends_at=campaign.ends_at.isoformat(),
        audience=campaign.audience.model_dump(mode="json", exclude_none=True),
        unknown_items=0 if bundle is None else sum(item_id not in bundle.item_index for item_id in campaign.item_ids),
    )


def promotions(
    recommender: Recommender, request: PromotionsRequest, ranked: Ranked, row: int, *, campaigns: CampaignCatalogue
) -> PromotionsAnswer:
    """Rank the campaigns that run and whose audience the shopper is of, see `groups.Taste.fit`.

    They run by `context.time`, else by the wall clock: a campaign is over when it is over, whatever the data knows.
    """
    shopper = ranked.shoppers[row]
    now = request.context.time or datetime.now(UTC)
    running = [campaign for campaign in campaigns.all() if campaign.starts_at <= now < campaign.ends_at]
    found = []
    if running:
        taste = Taste(recommender.scores_of(ranked, row), recommender.may_show(request.filters, shopper))
        for campaign in running:
            if _is_of(shopper, campaign.audience, recommender):
                items = np.array(list(dict.fromkeys(recommender.indices(campaign.item_ids))), dtype=np.int32)
                fit = taste.fit(items) if len(items) else None
                if fit is not None:
                    found.append((campaign, fit))
        found.sort(key=lambda pair: (-pair[1].score, pair[0].campaign_id))
    answered = []
    for rank, (campaign, fit) in enumerate(found[: request.k], start=1):
        rows = taste.rows(recommender, ranked, row, fit.items)
        answered.append(
            Promotion(
                campaign_id=campaign.campaign_id,
                title=campaign.title,
                ends_at=campaign.ends_at.isoformat(),
                rank=rank,
                score=fit.score,
                reason=reason_of(rows[0]),
                items=rows,
            )
        )
    return PromotionsAnswer(
        request_id=new_request_id(),
        model_version=recommender.version,
        as_of=moment(shopper.history.as_of_us),
        fallback=ranked.fallbacks[row],
        promotions=answered,
    )


def _is_of(shopper: Shopper, audience: Audience, recommender: Recommender) -> bool:
    """Return whether a shopper is of an audience: everything that it names must hold."""
    stands = standing(shopper)
    if audience.countries is not None and shopper.country not in audience.countries:
        return False
    if audience.segments is not None and stands.segment not in audience.segments:
        return False
    if audience.min_orders is not None and stands.orders < audience.min_orders:
        return False
    if audience.max_orders is not None and stands.orders > audience.max_orders:
        return False
    if audience.bought_category is None:
        return True
    history = zip(shopper.history.item_ids, shopper.history.event_types, strict=True)
    bought = recommender.indices([item_id for item_id, event_type in history if event_type == _BOUGHT])
    return bool(recommender.bundle.in_categories([audience.bought_category])[bought].any())
