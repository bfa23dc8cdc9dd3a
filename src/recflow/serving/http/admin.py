"""Calls for those who run the shop: versions, and which one answers; campaigns."""

from typing import TYPE_CHECKING

from recflow.errors import BundleInvalid, RecflowError, RegistryError
from recflow.serving.answers import CampaignsAnswer, VersionsAnswer
from recflow.serving.http.problems import Problem, field_error
from recflow.serving.placements.campaigns import TooManyCampaigns, described

if TYPE_CHECKING:
    from recflow.serving.http.routes import Call
    from recflow.serving.http.shop import Shop


async def models(shop: "Shop", call: "Call") -> VersionsAnswer:
    """List the versions that are kept, newest first."""
    try:
        versions = await shop.ask_registry(shop.registry.versions)
    except RegistryError as error:
        raise Problem(503, "The registry can't be asked just now.", retry_after="5") from error
    served = shop.slot.current.version if shop.slot.current else None
    return VersionsAnswer(request_id=call.request_id, served=served, versions=versions)


async def switch(shop: "Shop", call: "Call") -> VersionsAnswer:
    """Move the champion alias; every worker follows within seconds, this one before it answers."""
    wanted = call.body.model_version
    try:
        kept = [row["version"] for row in await shop.ask_registry(shop.registry.versions)]
        if wanted not in kept:
            detail = f"There is no such version; kept are {', '.join(kept) or 'none'}."
            raise Problem(404, detail, errors=[field_error("model_version", "unknown")])
        await shop.ask_registry(shop.registry.promote, wanted)
        await shop.ask_registry(shop.slot.refresh)
    except BundleInvalid as error:
        raise Problem(409, "That version can't be served: its files are incomplete or altered.") from error
    except RegistryError as error:
        raise Problem(503, "The registry can't be changed just now.", retry_after="5") from error
    return await models(shop, call)


async def campaigns(shop: "Shop", call: "Call") -> CampaignsAnswer:
    """List the campaigns that are kept."""
    bundle = shop.slot.current.bundle if shop.slot.current else None
    try:
        kept = await shop.in_thread(shop.campaigns.all)
    except RecflowError as error:
        raise Problem(503, "The campaigns can't be read just now.", retry_after="5") from error
    return CampaignsAnswer(request_id=call.request_id, campaigns=[described(campaign, bundle) for campaign in kept])


async def put_campaigns(shop: "Shop", call: "Call") -> CampaignsAnswer:
    """Add or replace campaigns; they are on disk, and every worker has them, before the answer."""
    try:
        await shop.in_thread(shop.campaigns.put, call.body.campaigns)
    except TooManyCampaigns as error:
        raise Problem(422, str(error), errors=[field_error("campaigns", "too many")]) from error
    except (OSError, RecflowError) as error:
        raise Problem(503, "The campaigns can't be kept just now; none was taken.", retry_after="5") from error
    return await campaigns(shop, call)


async def remove_campaign(shop: "Shop", call: "Call") -> CampaignsAnswer:
    """Take a campaign out."""
    try:
        is_found = await shop.in_thread(shop.campaigns.remove, call.params["campaign_id"])
    except (OSError, RecflowError) as error:
        raise Problem(503, "The campaigns can't be changed just now.", retry_after="5") from error
    if not is_found:
        raise Problem(404, "There is no such campaign.", errors=[field_error("campaign_id", "unknown")])
    return await campaigns(shop, call)
