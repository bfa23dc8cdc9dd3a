"""A promotion isn't done before every worker of the endpoint answers from it."""

import time

from recflow.console import log
from recflow.errors import PublishError
from recflow.settings import Settings
from recflow.storage import Artifact

_ASK_AGAIN_SECONDS = 0.5


def confirm_served(version: str, settings: Settings) -> Artifact:
    """Ask the endpoint at the settings' host and port until all its workers answer from a version.

    Where nothing listens there is nothing to confirm: the version is served as soon as an endpoint starts.

    Raises:
        PublishError: an endpoint is up and still answers from another version after `serving.confirm_seconds`.
    """
    import httpx

    address = f"http://{settings.serving.host}:{settings.serving.port}"
    deadline = time.monotonic() + settings.serving.confirm_seconds
    while True:
        try:
            served = httpx.get(f"{address}/readyz", timeout=2.0).json()["versions_served"]  # no key is needed for it
        except httpx.ConnectError:
            log.info("No endpoint listens at %s; version %s is served as soon as one starts.", address, version)
            return Artifact(address, {"version": version, "served": False})
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            served = [f"no answer ({type(error).__name__})"]
        if served == [version]:
            return Artifact(address, {"version": version, "served": True})
        if time.monotonic() > deadline:
            raise PublishError(
                f"Endpoint {address}: expected version {version} within {settings.serving.confirm_seconds} s, found "
                f"{' and '.join(served) or 'none'}. The alias is moved; see the endpoint's log for why it refused the "
                "bundle, or roll back."
            )
        time.sleep(_ASK_AGAIN_SECONDS)
