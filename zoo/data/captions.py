"""Captions of scenes, in English and in Chinese: many phrasings, from fully specified to partial.

What a caption leaves open is free in its picture. `swapped` makes the hard negatives of contrastive training: the same
caption with one facet changed, never into a held-out combination.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, TypeAlias

import numpy as np

from zoo.data.scenes import (
    BACKGROUNDS,
    COLOURS,
    INVERSE,
    RELATIONS,
    SHAPES,
    SIZES,
    Description,
    Item,
    Scene,
    is_heldout,
)

Language: TypeAlias = Literal["en", "zh"]
LANGUAGES: tuple[Language, Language] = ("en", "zh")
Rng: TypeAlias = np.random.Generator
COLOURED_SHARE = 0.7  # of partial captions
FULL_SHARE = 0.7  # full captions train far better than short ones (papers: PRX, arXiv 2310.00426)

PLURAL = {"butterfly": "butterflies", "cross": "crosses", "fish": "fish"}
ZH_OBJECT = {  # word and measure word
    "circle": ("圆形", "个"),
    "square": ("正方形", "个"),
    "triangle": ("三角形", "个"),
    "star": ("星星", "颗"),
    "heart": ("心形", "颗"),
    "ring": ("圆环", "个"),
    "cross": ("十字", "个"),
    "moon": ("月亮", "个"),
    "butterfly": ("蝴蝶", "只"),
    "car": ("汽车", "辆"),
    "house": ("房子", "座"),
    "tree": ("树", "棵"),
    "flower": ("花", "朵"),
    "fish": ("鱼", "条"),
    "cat": ("猫", "只"),
    "mushroom": ("蘑菇", "朵"),
}
ZH_COLOUR = dict(zip(COLOURS, ["红色", "橙色", "黄色", "绿色", "蓝色", "紫色", "粉色", "黑色"], strict=True))
ZH_BACKGROUND = dict(zip(BACKGROUNDS, ["白色", "灰色", "米色", "天蓝色", "薄荷色", "夜空"], strict=True))
ZH_SIZE = {"small": "小", "large": "大"}
ZH_STYLE = {"plain": "平涂", "cartoon": "卡通", "sketch": "素描"}
ZH_SIDES = {
    "left of": ("左边", "左侧"),
    "right of": ("右边", "右侧"),
    "above": ("上方", "上面", "上边"),
    "below": ("下方", "下面", "下边"),
}
EN_SIDES = {
    "left of": ("left of", "to the left of", "on the left of"),
    "right of": ("right of", "to the right of", "on the right of"),
    "above": ("above", "above", "over"),
    "below": ("below", "below", "under"),
}
EN_PLACES = {"left of": "on the left", "right of": "on the right", "above": "at the top", "below": "at the bottom"}
EN_COUNT = {1: "one", 2: "two", 3: "three", 4: "four"}
ZH_COUNT = {1: "一", 2: "两", 3: "三", 4: "四"}


def caption(
    said: Scene | Description, language: Language, rng: Rng, full: bool | None = None, coloured: float = COLOURED_SHARE
) -> str:
    """One phrasing of a scene or a description.

    A description is said whole. Of a scene, `full` says everything, False leaves facets open at random (its colours but
    for a share of `coloured`), and None does either (70 % full). The plain style and the absence of a face are defaults
    that are mostly left unsaid.
    """
    if isinstance(said, Scene):
        said = said.describe()
        if not (rng.random() < FULL_SHARE if full is None else full):
            said = partial(said, rng, coloured)
    elif full is False:
        said = partial(said, rng, coloured)
    if said.style == "plain" and rng.random() < 0.7:
        said = replace(said, style=None)
    return (_english if language == "en" else _chinese)(said, rng)


def partial(description: Description, rng: Rng, coloured: float = COLOURED_SHARE) -> Description:
    """The same description with facets left open at random; what is there, and how many, stays said.

    Half of them are terse, with neither size nor background, style or face: so people write, and so models are asked.
    A share of `coloured` says the objects' colours.
    """
    terse = rng.random() < 0.5

    def keep(value: str | None, share: float) -> str | None:
        return value if rng.random() < share else None

    named = rng.random() < coloured
    if terse:
        bare = tuple(Item(item.shape, item.colour if named else None) for item in description.items)
        return Description(bare, description.count, keep(description.relation, 0.6))
    items = tuple(replace(i, colour=i.colour if named else None, size=keep(i.size, 0.4)) for i in description.items)
    return replace(
        description,
        items=items,
        relation=keep(description.relation, 0.6),
        background=keep(description.background, 0.4),
        style=keep(description.style, 0.5),
        face=description.face if rng.random() < 0.5 else None,
    )


def article(word: str) -> str:
    """The English article before a word."""
    return "an" if word[0] in "aeiou" else "a"


def plural(shape: str) -> str:
    """The English word for several of a shape."""
    return PLURAL.get(shape, shape + "s")


def swapped(description: Description, rng: Rng) -> Description:
    """The description with one said facet changed to another value (or two colours exchanged): a hard negative."""
    while True:
        changed = _swap(description, rng)
        if changed != description and not is_heldout(changed):
            return changed


def _swap(said: Description, rng: Rng) -> Description:
    def other(value: object, values: tuple[str, ...]) -> str:
        return str(rng.choice([v for v in values if v != value]))

    facets = ["shape"]
    facets += ["colour"] * 2 if said.items[0].colour else []
    facets += ["exchange"] * 3 if len(said.items) == 2 and said.items[0].colour else []
    facets += ["size"] if said.items[0].size else []
    facets += ["relation"] * 3 if said.relation else []
    facets += ["count"] * 3 if len(said.items) == 1 else []
    facets += [f for f in ("background", "style") if getattr(said, f)]
    facets += ["face"] if said.face is False else []
    facet, which = str(rng.choice(facets)), int(rng.integers(len(said.items)))
    item = said.items[which]
    if facet == "shape":
        item = replace(item, shape=other(item.shape, SHAPES))
    elif facet == "colour":
        item = replace(item, colour=other(item.colour, COLOURS))
    elif facet == "size":
        item = replace(item, size=other(item.size, SIZES))
    elif facet == "exchange":
        a, b = said.items
        return replace(said, items=(replace(a, colour=b.colour), replace(b, colour=a.colour)))
    elif facet == "relation":
        # The opposite direction is the mistake that a bag of words cannot see.
        opposite = INVERSE[said.relation or ""]
        return replace(said, relation=opposite if rng.random() < 0.7 else other(said.relation, RELATIONS))
    elif facet == "count":
        size_free = replace(item, size=None)
        count = int(rng.choice([c for c in (1, 2, 3, 4) if c != said.count]))
        return replace(said, count=count, items=(item if count == 1 else size_free,))
    elif facet == "background":
        return replace(said, background=other(said.background, BACKGROUNDS))
    elif facet == "style":
        # Never into "plain" or out of a face: both are mostly left unsaid, and what is unsaid is not wrong.
        return replace(said, style=other(said.style, ("cartoon", "sketch")))
    elif facet == "face":
        return replace(said, face=True)
    return replace(said, items=tuple(item if k == which else i for k, i in enumerate(said.items)))


# --- English ---------------------------------------------------------------------------------------------------------


def _english(said: Description, rng: Rng) -> str:
    listed = rng.random() < 0.2
    things = _en_noun(said.items[0], said.count, rng, bare=listed) if len(said.items) == 1 else _en_two(said, rng)
    sprite = ""
    if said.face:
        many = said.count > 1 or len(said.items) == 2
        forms = (
            (", sprites", " with faces", " with smiling faces")
            if many
            else (", sprite", " with a face", " with a smile")
        )
        sprite = forms[0] if listed else str(rng.choice(forms))
    background = ""
    if said.background:
        forms = (f" on a {said.background} background", f", {said.background} background", f" on {said.background}")
        if said.background == "night":
            forms = (" on a night background", ", night background", " at night")
        background = forms[1] if listed else str(rng.choice(forms))
    style, lead = "", ""
    if said.style:
        roll = rng.random()
        if roll < 0.35 and not listed and said.style != "plain":
            lead = f"a {said.style} of "
        else:
            style = f", {said.style} style" if roll > 0.75 else f", {said.style}"
    tail = [sprite, background, style]
    if listed:
        tail = [tail[i] for i in rng.permutation(3)]
    text = lead + things + "".join(tail)
    return text.replace(", ", ",") if listed and rng.random() < 0.3 else text


def _en_noun(item: Item, count: int, rng: Rng, bare: bool = False) -> str:
    words = [w for w in (item.size, item.colour) if w]
    if count == 1:
        words.append(item.shape)
        text = " ".join(words)
        return text if bare else f"{article(text)} {text}"
    words.append(plural(item.shape))
    return " ".join([str(count) if rng.random() < 0.15 else EN_COUNT[count], *words])


def _en_two(said: Description, rng: Rng) -> str:
    (a, b), relation = said.items, said.relation
    if relation is None or rng.random() < 0.5:
        a, b = (a, b) if relation or rng.random() < 0.5 else (b, a)
    elif relation:
        a, b, relation = b, a, INVERSE[relation]
    first, second = _en_noun(a, 1, rng), _en_noun(b, 1, rng)
    if relation is None:
        return f"{first} and {second}"
    if rng.random() < 0.3:
        return f"{first} {EN_PLACES[relation]} and {second} {EN_PLACES[INVERSE[relation]]}"
    return f"{first} {rng.choice(EN_SIDES[relation])} {second}"


# --- Chinese ---------------------------------------------------------------------------------------------------------


def _chinese(said: Description, rng: Rng) -> str:
    listed = rng.random() < 0.2
    things = _zh_noun(said.items[0], said.count, rng, bare=listed) if len(said.items) == 1 else _zh_two(said, rng)
    tail = []
    if said.face:
        tail.append("小精灵" if listed else str(rng.choice(("小精灵", "小精灵", "带笑脸", "有笑脸"))))
    lead = ""
    if said.background:
        name = ZH_BACKGROUND[said.background]
        if not listed and rng.random() < 0.3:
            lead = "夜空下," if said.background == "night" else f"在{name}背景上,"
        else:
            tail.append(f"{name}背景")
    if said.style:
        name = ZH_STYLE[said.style]
        if not listed and rng.random() < 0.2:
            lead = f"{name}画," + lead
        else:
            tail.append(name if listed or rng.random() < 0.6 else f"{name}风格")
    if listed or rng.random() < 0.3:
        tail = [tail[i] for i in rng.permutation(len(tail))]
    return lead + ",".join([things, *tail])


def _zh_noun(item: Item, count: int, rng: Rng, bare: bool = False) -> str:
    colour = ""
    if item.colour:
        colour = ZH_COLOUR[item.colour] + ("的" if rng.random() < 0.5 else "")
    size = ""
    if item.size:
        size = ZH_SIZE[item.size] + ("的" if rng.random() < 0.6 or not colour else "")
    word, measure = ZH_OBJECT[item.shape]
    name = size + colour + word
    if count == 1 and (bare or rng.random() < 0.4):
        return name
    return ZH_COUNT[count] + (measure if rng.random() < 0.7 else "个") + name


def _zh_two(said: Description, rng: Rng) -> str:
    (a, b), relation = said.items, said.relation
    if relation is None:
        a, b = (a, b) if rng.random() < 0.5 else (b, a)
    elif rng.random() < 0.5:
        a, b, relation = b, a, INVERSE[relation]
    first, second = _zh_noun(a, 1, rng), _zh_noun(b, 1, rng)
    if relation is None:
        return f"{first}和{second}"
    sides = ZH_SIDES[relation]
    which = int(rng.integers(len(sides)))
    side, facing = sides[which], ZH_SIDES[INVERSE[relation]][which]
    link = "的" if rng.random() < 0.5 else ""
    forms = (
        f"{first}在{second}{link}{side}",
        f"{second}{link}{side}是{first}",
        f"{second}{link}{side}有{first}",
        f"{side}是{first},{facing}是{second}",
    )
    return str(rng.choice(forms))
