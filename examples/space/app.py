"""The page of `poster-zoo demo` as a Hugging Face Space."""

from __future__ import annotations

import threading

from poster_zoo.demo import build_page, serve

if __name__ == "__main__":
    with serve(build_page(seconds=20), host="0.0.0.0", port=7860, max_upload=25) as address:  # noqa: S104  # as Spaces ask
        print(address)
        threading.Event().wait()
