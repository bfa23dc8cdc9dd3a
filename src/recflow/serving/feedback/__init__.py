"""What happens in the shop -> the landing zone, on disk before the answer, and in the next answer of every worker.

Accepted events are appended to `<home>/landing/feedback/events/<UTC date of the event>.jsonl`, the JSON Lines feed's
shape: `ingest` of that day reads them beside the main source. Requests to be forgotten are appended to
`<home>/landing/erasures/<UTC date of the request>.jsonl`. Both are only ever read up to where a writer said, after its
fsync, that they are good: see `commits`.
"""

from recflow.serving.feedback.commits import erasures_folder, events_folder
from recflow.serving.feedback.judging import SOURCE, field_path, judge_events
from recflow.serving.feedback.log import Appended, EventLog
from recflow.serving.feedback.memory import HISTORY_TYPES, RecentEvent, to_us
from recflow.serving.feedback.rewriting import rewrite_without

__all__ = [
    "HISTORY_TYPES",
    "SOURCE",
    "Appended",
    "EventLog",
    "RecentEvent",
    "erasures_folder",
    "events_folder",
    "field_path",
    "judge_events",
    "rewrite_without",
    "to_us",
]
