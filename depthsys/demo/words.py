"""The words of the demo grammar."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Domain:
    """Words of one subject; pairs are indexed by sentiment (negative, positive)."""

    whole: tuple[str, ...]
    aspects: tuple[tuple[str, str], ...]
    people: tuple[tuple[str, str], ...]
    adjectives: tuple[tuple[str, ...], tuple[str, ...]]
    went: tuple[str, ...]
    where: tuple[str, ...]
    asides: tuple[str, ...]
    one: str
    had: str
    tags: tuple[str, ...]
    advice: tuple[tuple[str, ...], tuple[str, ...]]
    outlook: tuple[tuple[str, ...], tuple[str, ...]]


# Packed word lists; one word a line would double the file.
# fmt: off
FOOD = Domain(
    whole=("the meal", "the dinner", "the lunch", "the food", "the menu", "this restaurant"),
    aspects=(
        ("the soup", "was"), ("the bread", "was"), ("the sauce", "was"), ("the fish", "was"),
        ("the salad", "was"), ("the dessert", "was"), ("the coffee", "was"), ("the curry", "was"),
        ("the noodles", "were"), ("the potatoes", "were"), ("the vegetables", "were"),
        ("the starters", "were"),
    ),
    people=(("the cook", "was"), ("the waiter", "was"), ("the service", "was")),
    adjectives=(
        ("bland", "stale", "greasy", "tasteless", "soggy"),
        ("tasty", "fresh", "delicious", "crisp", "juicy"),
    ),
    went=("went for dinner", "had lunch", "took a table", "ate out", "ordered the set menu"),
    where=(
        "at the corner restaurant", "at the new bistro", "at the harbour cafe", "in the old tavern",
        "at the noodle bar", "in the pizza place on Mill Street",
    ),
    asides=(
        "we sat at the table near the window", "the waiter wore a green apron",
        "we shared two plates", "I ordered the dish of the day", "the menu was written on a board",
        "the kitchen closes at ten", "we had come straight from the cinema",
        "we talked about a film while we ate",
    ),
    one="meal",
    had="eaten",
    tags=("#dinner", "#lunch", "#foodie", "#restaurant"),
    advice=(
        (
            "Eat at home instead.", "Skip this kitchen.", "Take your appetite elsewhere.",
            "Order nothing here.",
        ),
        (
            "Book a table soon.", "Try the whole menu.", "Bring a big appetite.",
            "Order a second plate.",
        ),
    ),
    outlook=(
        (
            "I will not eat here again.", "I left my plate half full.",
            "My hunger stayed, my money went.",
        ),
        (
            "I will come back for dinner with friends.", "I cleared my plate.",
            "My compliments go to the cook.",
        ),
    ),
)

FILM = Domain(
    whole=("the film", "the movie", "the picture", "the sequel", "the show", "this thriller"),
    aspects=(
        ("the plot", "was"), ("the story", "was"), ("the acting", "was"), ("the script", "was"),
        ("the music", "was"), ("the ending", "was"), ("the camera work", "was"),
        ("the opening", "was"), ("the jokes", "were"), ("the scenes", "were"),
        ("the songs", "were"), ("the costumes", "were"),
    ),
    people=(("the director", "was"), ("the lead actor", "was"), ("the cast", "was")),
    adjectives=(
        ("dull", "boring", "clumsy", "lifeless", "predictable"),
        ("gripping", "moving", "clever", "funny", "original"),
    ),
    went=("saw it", "watched it", "got tickets", "went to the late show", "sat in the front row"),
    where=(
        "at the old cinema", "at the film festival", "in the big theatre", "at the open air screen",
        "at the Odeon", "in the picture house on Mill Street",
    ),
    asides=(
        "we sat in the third row", "the screen was wide", "it ran for two hours",
        "the director is from Norway", "it was filmed in the desert", "the trailer came out in May",
        "we had eaten before", "we talked about it over dinner",
    ),
    one="film",
    had="seen",
    tags=("#cinema", "#movies", "#film", "#nowwatching"),
    advice=(
        (
            "Leave before the credits.", "Read the book instead.", "Save the price of the ticket.",
            "Watch anything else.",
        ),
        (
            "Get tickets soon.", "See it on a big screen.", "Stay for the credits.",
            "Give it an award.",
        ),
    ),
    outlook=(
        (
            "I will not watch it again.", "I looked at my watch all through it.",
            "My seat was the best part of the screening.",
        ),
        (
            "I will watch it again with friends.", "I clapped at the credits.",
            "My applause goes to the cast.",
        ),
    ),
)

DOMAINS = (FOOD, FILM)

ADJECTIVES = (
    (
        "bad", "poor", "awful", "terrible", "dreadful", "weak", "disappointing", "forgettable",
        "miserable", "mediocre",
    ),
    (
        "good", "great", "lovely", "excellent", "wonderful", "superb", "impressive", "memorable",
        "delightful", "charming",
    ),
)
INTENSIFIERS = ("very", "really", "truly", "quite", "so", "rather", "fairly", "pretty", "simply")
HEDGES = (
    "I think", "in my view", "to my mind", "if you ask me", "frankly", "as far as I can tell",
    "I suppose", "honestly",
)
# Each predicate stands with the sentiment it conveys; the pairs reuse each other's words
# ("let me down" and "did not let me down") so that no word decides alone.
PREDICATES = (
    (
        "let me down", "left me cold", "ruined the evening", "fell short of my hopes",
        "did not win me over", "did not make the evening", "did not deserve the praise",
        "gave me no reason to smile", "deserved every complaint", "failed to convince me",
    ),
    (
        "won me over", "made the evening", "went beyond my hopes", "did not let me down",
        "did not leave me cold", "did not ruin the evening", "deserved the praise",
        "gave me no reason to complain", "made me smile", "never failed to convince me",
    ),
)
VERDICTS = (
    (
        "I was sorry that we came", "I was not glad that we came", "it was a waste of money",
        "it was not worth the money", "I would not go again", "I regret the evening",
        "it was a mistake to go", "I cannot recommend it",
    ),
    (
        "I was glad that we came", "I was not sorry that we came", "it was worth the money",
        "it was not a waste of money", "I would go again", "I do not regret the evening",
        "it was no mistake to go", "I can only recommend it",
    ),
)
ENDS = (
    "in the end", "all in all", "on balance", "still", "even so", "all told", "when all is said",
)
DAYS = ("on Monday", "on Tuesday", "on Friday", "on Sunday", "last night", "last week", "in June")
OTHERS = (
    "my brother", "my sister", "my neighbour", "a friend", "the paper", "everybody", "a critic",
)
NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Maria", "Omar", "Ruth", "Tom")
ASIDES = (
    "it rained all evening", "the bus was late", "we paid by card",
    "there was a long queue at the door", "we arrived at seven", "the room was half full",
    "we walked home", "there were forty people there",
)
EXCLAMATIONS = (
    ("Avoid.", "Awful.", "Never again.", "What a shame.", "Thumbs down."),
    ("Recommended.", "Wonderful.", "Well done.", "What a joy.", "Thumbs up."),
)
STARS = (("one star", "two stars"), ("four stars", "five stars"))
# fmt: on
