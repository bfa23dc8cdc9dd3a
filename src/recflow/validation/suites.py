"""Great Expectations, in memory: checks and a frame -> the first check that each row breaks, and Data Docs.

The pandas engine is used because it hands back every failing row; the SQL engines stop at twenty. Reports hold counts
and percentages, no values: `unexpected` values are never asked for, and the rows' positions are taken out before.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from recflow.errors import RecflowError
from recflow.schema import Days, day_end
from recflow.validation.checks import Check, quiet

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

_RESULT_FORMAT = {
    "result_format": "COMPLETE",
    "exclude_unexpected_values": True,
    "return_unexpected_index_query": False,  # a string of all positions, as long as the frame
    "partial_unexpected_count": 0,
}


@dataclass(frozen=True)
class Judgement:
    """What a suite said of a frame.

    `broken` holds, per row of the frame, the number of the first check that the row breaks, or -1.
    """

    checks: Sequence[Check]
    broken: "np.ndarray"
    result: Any

    @property
    def is_good(self) -> "np.ndarray":
        """Return which rows break no check."""
        return self.broken < 0

    def counts(self, rows: Any = slice(None)) -> dict[str, int]:
        """Return how many of the given rows broke each check first; checks that none broke are left out."""
        import numpy as np

        found = self.broken[rows]
        counts = np.bincount(found[found >= 0], minlength=len(self.checks)).tolist()
        return {check.name: count for check, count in zip(self.checks, counts, strict=True) if count}


class Suites:
    """The suites of one run, which share a context and a report."""

    def __init__(self) -> None:
        """Open an empty context in memory, without progress bars."""
        with quiet():
            import great_expectations as gx
            from great_expectations.data_context.types.base import (
                DataContextConfig,
                InMemoryStoreBackendDefaults,
                ProgressBarsConfig,
            )

            config = DataContextConfig(
                # Reports have their own place; the default names one in the temporary folder of the system.
                store_backend_defaults=InMemoryStoreBackendDefaults(init_temp_docs_sites=False),
                progress_bars=ProgressBarsConfig(globally=False, metric_calculations=False),
                analytics_enabled=False,
            )
            # Any: the library's own types are at odds with its documented use.
            self._context = cast(Any, gx.get_context(mode="ephemeral", project_config=config))
        self._judgements: dict[str, Judgement] = {}

    def run(self, name: str, checks: Sequence[Check], frame: "pd.DataFrame") -> Judgement:
        """Judge a frame with a range index by a suite of checks.

        Raises:
            RecflowError: a check couldn't be applied to the frame.
        """
        import numpy as np

        with quiet():
            import great_expectations as gx

            suite = gx.ExpectationSuite(name=name, expectations=[check.expectation for check in checks])
            asset = self._context.data_sources.add_pandas(name).add_dataframe_asset(name)
            batch = asset.add_batch_definition_whole_dataframe(name).get_batch({"dataframe": frame})
            result = batch.validate(self._context.suites.add(suite), result_format=_RESULT_FORMAT)
        by_rule: dict[str, Any] = {each.expectation_config.meta["rule"]: each for each in result.results}
        broken = np.full(len(frame), -1, dtype=np.int16)
        for number, check in enumerate(checks):
            each = by_rule[check.name]
            if "unexpected_index_list" not in each.result:
                raise RecflowError(
                    f"{name}: the check {check.name} couldn't be applied to {len(frame):,} rows: "
                    f"{each.exception_info}. Compare the tables in the lake with recflow's schema."
                )
            positions = np.asarray(each.result.pop("unexpected_index_list"), dtype=np.int64)
            broken[positions[broken[positions] < 0]] = number
        self._judgements[name] = Judgement(checks, broken, result)
        return self._judgements[name]

    def write_docs(self, folder: Path, days: Days) -> None:
        """Write what all suites said as a static site with `index.html` into an existing folder."""
        with quiet():
            from great_expectations.core.run_identifier import RunIdentifier
            from great_expectations.data_context.types.resource_identifiers import (
                ExpectationSuiteIdentifier,
                ValidationResultIdentifier,
            )

            run = RunIdentifier(run_name=f"days {days}", run_time=day_end(days.end))
            for name, judgement in self._judgements.items():
                key = ValidationResultIdentifier(ExpectationSuiteIdentifier(name), run, batch_identifier=name)
                judgement.result.meta["run_id"] = run
                self._context.validation_results_store.set(key, judgement.result)
            self._context.add_data_docs_site("report", _site(folder))
            self._context.build_data_docs(site_names=["report"])
        # Fonts and tutorial films: four megabytes a report for pages that do without.
        shutil.rmtree(folder / "static" / "fonts", ignore_errors=True)
        for film in (folder / "static").rglob("*.gif"):
            film.unlink()


def _site(folder: Path) -> Any:
    return {
        "class_name": "SiteBuilder",
        "show_how_to_buttons": False,
        "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(folder)},
        "site_index_builder": {"class_name": "DefaultSiteIndexBuilder", "show_cta_footer": False},
    }
