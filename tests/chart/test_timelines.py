"""What the scenarios record of an incident, stretched to the hours that an alert may need."""

from timelines import Scrape, stretched


def found(*scrapes: Scrape, held: tuple[int, ...], steps: int = 100) -> tuple[dict[str, str], list[int]]:
    series, ends = stretched(list(scrapes), held, every=2, steps=steps)
    return {one["series"]: one["values"] for one in series}, ends


def test_a_held_gauge_keeps_its_value_and_what_is_away_stays_away() -> None:
    """What was recorded comes before, in its own time, and afterwards."""
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
    """A burst before does not count, and what is recorded later is not less."""
    series, _ = found(
        Scrape(0, {"drops_total": 0.0}),
        Scrape(2, {"drops_total": 90.0}),
        Scrape(4, {"drops_total": 90.0}),
        Scrape(8, {"drops_total": 92.0}),
        held=(2,),
    )
    assert series == {"drops_total": "0.0 90.0 90.0 91.0+1.0x99 _x1 192.0"}


def test_a_counter_that_begins_anew_after_a_hold_does() -> None:
    """Its process is another one."""
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
