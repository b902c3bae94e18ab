"""What a launcher must do with a user's mistake."""

import pytest

from amortjax.errors import AmortjaxError
from amortjax.launch import flagged


def refuses(launcher, flags, text, folder, monkeypatch) -> None:
    """One line that holds `text`, and nothing written to the empty `folder` it is run in."""
    monkeypatch.chdir(folder)
    with pytest.raises(AmortjaxError) as caught:
        launcher.run(flagged.parse(launcher.Config, flags))
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(folder.iterdir())
