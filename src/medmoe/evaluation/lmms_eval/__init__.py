"""lmms-eval, an external harness: our models in it, VQA-RAD and PathVQA as its tasks."""

from pathlib import Path

#: What `lmms_eval --include_path` takes: the folder of the tasks' YAML files.
TASKS = Path(__file__).parent
