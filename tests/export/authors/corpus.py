"""All authors: name -> entry."""

from tests.export.authors import (
    cells,
    control,
    forecasting,
    gates,
    habits,
    networks,
    recurrences,
    relatives,
    speech,
    text,
    traps,
    windows,
)
from tests.export.authors.entry import Entry

CORPUS: dict[str, Entry] = {
    **cells.ENTRIES,
    **relatives.ENTRIES,
    **gates.ENTRIES,
    **habits.ENTRIES,
    **networks.ENTRIES,
    **recurrences.ENTRIES,
    **forecasting.ENTRIES,
    **windows.ENTRIES,
    **speech.ENTRIES,
    **text.ENTRIES,
    **traps.ENTRIES,
    **control.ENTRIES,
}
