"""Names of classes, where a file of the run or the dataset's source tells them."""

from collections.abc import Iterable

# Of the sources whose files hold numbers alone. Sources: H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST", 2017;
# A. Krizhevsky, "Learning multiple layers of features from tiny images", 2009.
SOURCE_NAMES = {
    "fashion_mnist": (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
}


def class_names(
    categories: Iterable[str] | None, source: str | None, predictions: list[dict[str, str]]
) -> dict[str, str]:
    """Names by class index (as text): the network's own `categories`, else the source's, else the folders'.

    `source` is that of the dataset. `predictions` are rows of predictions.csv; the key of an image with a label is its
    path below the class folders, where it has any. Classes without a name are left out.
    """
    known = categories or SOURCE_NAMES.get(source or "")
    if known:
        return {str(index): name for index, name in enumerate(known)}
    return {row["label"]: row["image"].split("/")[0] for row in predictions if row["label"] and "/" in row["image"]}


def named(index: str, names: dict[str, str]) -> str:
    """A class as a report writes it: tabby (281), or 281 where no name is known."""
    return f"{names[index]} ({index})" if index in names else index
