"""What the shop sells: prices in euros, and the exchange rates of the day."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal

PRODUCTS: dict[str, tuple[str, str]] = {
    "KIT-PAN-24": ("Cast-iron pan 24 cm", "34.90"),
    "KIT-PAN-28": ("Cast-iron pan 28 cm", "42.50"),
    "KIT-KNF-CH": ("Chef's knife 20 cm", "59.00"),
    "KIT-KNF-PR": ("Paring knife 9 cm", "14.95"),
    "KIT-BRD-OK": ("Oak cutting board", "39.00"),
    "KIT-KTL-17": ("Kettle 1.7 l", "49.90"),
    "KIT-GRD-BR": ("Burr coffee grinder", "89.00"),
    "KIT-FRP-08": ("French press 0.8 l", "27.50"),
    "KIT-MUG-4B": ("Mugs, blue, set of four", "32.00"),
    "KIT-BWL-6W": ("Bowls, white, set of six", "44.00"),
    "TEX-TWL-GR": ("Bath towel, grey", "18.90"),
    "TEX-TWL-WH": ("Bath towel, white", "18.90"),
    "TEX-BLK-WO": ("Wool blanket", "79.00"),
    "TEX-PIL-DN": ("Down pillow 50 x 70", "54.90"),
    "TEX-LIN-DB": ("Linen sheets, double", "119.00"),
    "TEX-APR-BL": ("Apron, black", "22.00"),
    "LGT-DSK-LD": ("Desk lamp, LED", "64.00"),
    "LGT-FLR-AR": ("Arc floor lamp", "189.00"),
    "LGT-BLB-E27": ("LED bulbs E27, pack of three", "12.99"),
    "LGT-LNT-CP": ("Camping lantern", "29.95"),
    "OUT-TNT-2P": ("Tent for two", "249.00"),
    "OUT-SLP-M5": ("Sleeping bag -5 °C", "129.00"),
    "OUT-BTL-10": ("Steel bottle 1 l", "24.90"),
    "OUT-STV-GS": ("Gas stove", "39.95"),
    "OUT-BPK-35": ("Backpack 35 l", "99.00"),
    "BOK-BRD-SD": ("The Sourdough Book", "28.00"),
    "BOK-GRD-YR": ("A Year in the Garden", "24.50"),
    "BOK-MAP-AL": ("Walking Map of the Alps", "16.80"),
    "GRD-SHR-BP": ("Bypass secateurs", "36.00"),
    "GRD-CAN-09": ("Watering can 9 l", "31.50"),
    "GRD-GLV-M": ("Garden gloves M", "11.90"),
    "GRD-SED-TO": ("Tomato seeds, six kinds", "9.60"),
}
RATES = {"EUR": "1", "GBP": "0.86", "USD": "1.09", "SEK": "11.30", "CHF": "0.95", "PLN": "4.30"}


def unit_price(sku: str, currency: str) -> Decimal:
    """Return what one piece costs.

    Raises:
        LookupError: The shop does not know the SKU or the currency.
    """
    if sku not in PRODUCTS:
        raise LookupError(f"there is no product {sku}")
    if currency not in RATES:
        raise LookupError(f"there is no price in {currency}")
    return (Decimal(PRODUCTS[sku][1]) * Decimal(RATES[currency])).quantize(Decimal("0.01"), ROUND_HALF_UP)
