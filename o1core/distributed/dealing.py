"""Who samples which problem: a team with a free slot takes the next one from torchrun's store.

So a rank whose completions are short takes more of them, and no rank waits before the last problem is dealt.
"""

import json
from collections.abc import Iterator

from .teams import Team
from .world import sign_of_life, wait_for, world


def deal(count: int, team: Team) -> Iterator[int]:
    """Indices below `count`, each to one team only. All ranks call this equally often; one process gets all of them."""
    opened = world()
    if opened is None:
        yield from range(count)
        return
    opened.deals += 1
    key = f"deal {opened.deals}"
    turn = 0
    while True:
        of_team = f"{key}/turn {turn}/{team.index * team.members}"
        if team.is_lead:
            taken = opened.store.add(key, 1) - 1
            if team.members > 1:
                opened.store.set(of_team, json.dumps(taken))
        else:
            wait_for(opened, [of_team], "the next problem")
            taken = json.loads(opened.store.get(of_team))
        if taken >= count:
            return
        sign_of_life()
        turn += 1
        yield taken
