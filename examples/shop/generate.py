"""Write ``orders.jsonl``: always the same file. Run ``python -m examples.shop.generate`` after changing this."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

from examples.shop.catalogue import PRODUCTS, unit_price

ORDERS = Path(__file__).with_name("orders.jsonl")
GOOD, CUSTOMERS, DUPLICATES = 1_150, 320, 24
Json = dict[str, Any]

# country -> currency, shipping, first names, last names, streets, (postcode, city)
PLACES: dict[str, tuple[str, str, str, str, str, list[tuple[str, str]]]] = {
    "DE": (
        "EUR",
        "4.90",
        "Anna Jonas Lena Paul Mia Felix Katharina Lukas Sabine Stefan",
        "Müller Schmidt Schneider Fischer Weber Becker Hoffmann Krüger Vogel Brandt",
        "Lindenstraße,Bahnhofstraße,Gartenweg,Schillerplatz,Am Markt",
        [("10115", "Berlin"), ("20095", "Hamburg"), ("80331", "München"), ("50667", "Köln"), ("04109", "Leipzig")],
    ),
    "SE": (
        "SEK",
        "59.00",
        "Ingrid Erik Astrid Oskar Elin Johan Maja Nils Karin Lars",
        "Johansson Andersson Karlsson Nilsson Lindqvist Berg Sandström Åkesson Öberg Holm",
        "Storgatan,Kungsgatan,Skolvägen,Björkgatan,Hamngatan",
        [("411 38", "Göteborg"), ("111 22", "Stockholm"), ("211 20", "Malmö"), ("753 10", "Uppsala")],
    ),
    "GB": (
        "GBP",
        "3.95",
        "Oliver Amelia George Isla Harry Emily Priya Callum Sophie Tariq",
        "Smith Jones Taylor Patel Williams Evans Khan O'Connor Hughes Fraser",
        "High Street,Church Lane,Station Road,Victoria Terrace,Mill Road",
        [("EH1 1RE", "Edinburgh"), ("M1 2WD", "Manchester"), ("BS1 4ST", "Bristol"), ("SW1A 2AA", "London")],
    ),
    "FR": (
        "EUR",
        "5.50",
        "Camille Hugo Chloé Louis Léa Gabriel Manon Jules Zoé Théo",
        "Martin Bernard Dubois Moreau Laurent Lefèvre Girard Fournier Rousseau Garnier",
        "rue de la République,rue des Lilas,avenue Jean Jaurès,place du Marché,quai Voltaire",
        [("75011", "Paris"), ("69002", "Lyon"), ("33000", "Bordeaux"), ("44000", "Nantes")],
    ),
    "PL": (
        "PLN",
        "19.90",
        "Zofia Jan Hanna Jakub Maria Piotr Alicja Tomasz Ewa Michał",
        "Nowak Kowalska Wiśniewski Wójcik Kamińska Zieliński Szymańska Dąbrowski Mazur Król",
        "ul. Długa,ul. Polna,ul. Leśna,ul. Mickiewicza,al. Jerozolimskie",
        [("00-001", "Warszawa"), ("31-001", "Kraków"), ("80-001", "Gdańsk"), ("50-001", "Wrocław")],
    ),
    "CH": (
        "CHF",
        "7.00",
        "Nina Reto Laura Marco Sandra Urs Elena Beat Corinne Luca",
        "Meier Keller Huber Steiner Bianchi Favre Rochat Zürcher Baumann Gerber",
        "Seestrasse,Dorfstrasse,Rue du Lac,Via Nassa,Hauptgasse",
        [("8001", "Zürich"), ("3011", "Bern"), ("1204", "Genève"), ("6900", "Lugano")],
    ),
    "US": (
        "USD",
        "12.00",
        "Emma Liam Olivia Noah Ava Mateo Grace Ethan Naomi Carlos",
        "Johnson Brown Garcia Miller Davis Rodriguez Nguyen Wilson Thompson Lee",
        "Maple Avenue,Oak Street,2nd Street,Lakeview Drive,Broadway",
        [("98101", "Seattle, WA"), ("60601", "Chicago, IL"), ("78701", "Austin, TX"), ("02108", "Boston, MA")],
    ),
}


def customers(rng: random.Random) -> list[Json]:
    """Return the shop's customers, each with an address and a card."""
    found = []
    for number in range(CUSTOMERS):
        country = rng.choices(list(PLACES), weights=[30, 12, 18, 15, 10, 8, 7])[0]
        currency, shipping, first, last, streets, cities = PLACES[country]
        name = f"{rng.choice(first.split())} {rng.choice(last.split())}"
        postcode, city = rng.choice(cities)
        mailbox = name.lower().replace(" ", ".").replace("'", "").encode("ascii", "ignore").decode()
        found.append(
            {
                "customer": {
                    "id": f"C-{10_000 + number * 7}",
                    "name": name,
                    "email": f"{mailbox}.{number}@example.com",
                },
                "ship_to": {
                    "street": f"{rng.choice(streets.split(','))} {rng.randint(1, 120)}",
                    "postcode": postcode,
                    "city": city,
                    "country": country,
                },
                "currency": currency,
                "shipping": shipping,
                "card": f"tok_{rng.choice(['visa', 'mastercard', 'amex'])}_{rng.getrandbits(32):08x}",
            }
        )
    return found


def order(rng: random.Random, number: int, placed: datetime, buyer: Json) -> Json:
    """Return one correct order."""
    skus = rng.sample(list(PRODUCTS), k=rng.choices([1, 2, 3, 4, 6], weights=[30, 30, 20, 15, 5])[0])
    lines = [
        {
            "sku": sku,
            "name": PRODUCTS[sku][0],
            "quantity": rng.choices([1, 2, 3, 6], weights=[70, 18, 8, 4])[0],
            "unit_price": str(unit_price(sku, buyer["currency"])),
        }
        for sku in skus
    ]
    goods = sum(Decimal(str(line["unit_price"])) * int(str(line["quantity"])) for line in lines)
    return {
        "id": f"WS-{number:06d}",
        "placed_at": placed.isoformat(),
        "customer": buyer["customer"],
        "ship_to": buyer["ship_to"],
        "currency": buyer["currency"],
        "lines": lines,
        "shipping": buyer["shipping"],
        "total": str(goods + Decimal(buyer["shipping"])),
        "card": buyer["card"],
    }


def wrong_total(o: Json) -> None:
    o["total"] = str(Decimal(o["total"]) - 10)


def free_of_charge(o: Json) -> None:
    o["total"] = "0.00"


def unknown_currency(o: Json) -> None:
    o["currency"] = "XAU"


def unknown_product(o: Json) -> None:
    o["lines"][0]["sku"] = "KIT-PAN-99"


def negative_quantity(o: Json) -> None:
    o["lines"][0]["quantity"] = -2


def no_lines(o: Json) -> None:
    o["lines"] = []


def no_customer(o: Json) -> None:
    del o["customer"]


def no_total(o: Json) -> None:
    del o["total"]


def bad_date(o: Json) -> None:
    o["placed_at"] = "yesterday"


def silent_bank(o: Json) -> None:
    o["card"] = "tok_bank_that_never_answers"


POISON: list[tuple[Callable[[Json], None], int]] = [
    (wrong_total, 4),
    (free_of_charge, 2),
    (unknown_currency, 3),
    (unknown_product, 3),
    (negative_quantity, 4),
    (no_lines, 2),
    (no_customer, 3),
    (no_total, 3),
    (bad_date, 2),
    (silent_bank, 3),
]


def orders(seed: int = 20_240) -> list[Json]:
    """Return all orders of the file in the order the shop gets them."""
    rng = random.Random(seed)
    buyers = customers(rng)
    spoilers = [spoil for spoil, count in POISON for _ in range(count)]
    total = GOOD + len(spoilers)
    spoiled = dict(
        zip(sorted(rng.sample(range(total), len(spoilers))), rng.sample(spoilers, len(spoilers)), strict=True)
    )
    placed = datetime(2025, 11, 28, 6, 0, tzinfo=timezone(timedelta(hours=1)))
    found = []
    for index in range(total):
        placed += timedelta(seconds=rng.randint(1, 70))
        new = order(rng, 4_200 + index, placed, rng.choice(buyers))
        if index in spoiled:
            spoiled[index](new)
        found.append(new)
    good = [index for index in range(total) if index not in spoiled]
    for index in sorted(rng.sample(good, DUPLICATES), reverse=True):
        found.insert(
            min(len(found), index + rng.choice([1, 1, 2, 40])), found[index]
        )  # sent twice by an anxious finger
    return found


def main() -> None:
    """Write the file."""
    lines = [json.dumps(one, ensure_ascii=False, separators=(",", ":")) for one in orders()]
    ORDERS.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(lines)} orders written to {ORDERS}")


if __name__ == "__main__":
    main()
