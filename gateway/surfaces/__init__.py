"""Every way in beside chat completions of a task, each a translation of it or a pass-through."""
