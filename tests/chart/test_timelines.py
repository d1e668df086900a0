"""The recorded samples of an incident, stretched to the hours that an alert may need."""

from timelines import Scrape, stretched


def found(*scrapes: Scrape, held: tuple[int, ...], steps: int = 100) -> tuple[dict[str, str], list[int]]:
    series, ends = stretched(list(scrapes), held, every=2, steps=steps)
    return {one["series"]: one["values"] for one in series}, ends


def test_a_held_gauge_keeps_its_value_and_what_is_away_stays_away() -> None:
    """During a hold a gauge keeps its value and a missing series stays missing.

    Recorded samples precede and follow the hold at their own times.
    """
    series, ends = found(
        Scrape(10, {"a": 1.0}),
        Scrape(12.1, {"a": 0.0, "b": 5.0}),
        Scrape(18.2, {"b": 6.0}),
        Scrape(20, {"a": 1.0, "b": 6.0}),
        held=(2,),
    )
    assert series == {"a": "1.0 0.0 _x2 stale _x100 1.0", "b": "_ 5.0 _x2 6.0 6.0+0.0x99 6.0"}
    assert ends == [104]


def test_a_held_counter_goes_on_growing_as_it_does() -> None:
    """During a hold a counter grows at its present rate, without an earlier burst, and later samples are not less."""
    series, _ = found(
        Scrape(0, {"drops_total": 0.0}),
        Scrape(2, {"drops_total": 90.0}),
        Scrape(4, {"drops_total": 90.0}),
        Scrape(8, {"drops_total": 92.0}),
        held=(2,),
    )
    assert series == {"drops_total": "0.0 90.0 90.0 91.0+1.0x99 _x1 192.0"}


def test_a_counter_that_begins_anew_after_a_hold_does() -> None:
    """A counter of a new process starts over after a hold."""
    series, ends = found(
        Scrape(0, {"c_total": 1.0}),
        Scrape(2, {"c_total": 3.0}),
        Scrape(4, {"c_total": 1.0}),
        Scrape(6, {}),
        held=(0, 2),
        steps=10,
    )
    assert series == {"c_total": "1.0 3.0+2.0x9 23.0 1.0 1.0+0.0x9 stale"}
    assert ends == [10, 22]
