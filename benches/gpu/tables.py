"""The Markdown tables that go into docs/benchmarks.md."""

# What each path of ours is compared with: the column of PyTorch's that the goals name.
GOAL = "pytorch: compiled, graphs"


def table(heads: list, rows: list) -> None:
    """Prints one table after an empty line."""
    print(f"\n| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for row in rows:
        print(f"| {' | '.join(str(cell).replace('|', '/') for cell in row)} |")
    print(end="", flush=True)


def logits(rows: list, allowed: dict) -> None:
    """Rows of (path, type, value or reason)."""
    cells = []
    for path, dtype, value in rows:
        if isinstance(value, str):
            cells.append([path, dtype, value, f"{allowed[dtype]:.0e}", "", ""])
            continue
        right = value["photographs"] - len(value["wrong"])
        reference = f"{right} of {value['photographs']}" if value["photographs"] else "no reference"
        same = f"{value['same_top1']} of {value['pictures']}"
        cells.append(
            [path, dtype, f"{value['furthest']:.2e}", f"{allowed[dtype]:.0e}", same, reference]
        )
    heads = ["path", "type", "furthest logit, share of the largest", "allowed"]
    table([*heads, "same top-1 as our CPU", "as the reference"], cells)


def speeds(found: dict) -> None:
    """Prints one table a type, in images per second; `found` is by (column, type, batch size).

    A reason that is longer than a cell stands below its table, once for all its cells.
    """
    for dtype in dict.fromkeys(dtype for _, dtype, _ in found):
        columns = list(dict.fromkeys(column for column, d, _ in found if d == dtype))
        batches = sorted({batch for _, d, batch in found if d == dtype})
        ours = [column for column in columns if column.startswith("ours")]
        shares = ours if GOAL in columns else []
        rows, reasons = [], {}
        for batch in batches:
            row = [dtype, batch]
            for column in columns:
                value = found.get((column, dtype, batch), "")
                if isinstance(value, str) and len(value) > 12:
                    reasons.setdefault(value, []).append(f"{column} at {batch}")
                    value = "see below"
                row.append(value if isinstance(value, str) else f"{value:.1f}")
            goal = found.get((GOAL, dtype, batch))
            for column in shares:
                value = found.get((column, dtype, batch))
                both = isinstance(value, float) and isinstance(goal, float)
                row.append(f"{value / goal:.2f}" if both else "")
            rows.append(row)
        table(
            ["type", "batch", *columns, *(f"{column} as a share of {GOAL}" for column in shares)],
            rows,
        )
        for reason, where in reasons.items():
            print(f"\n{', '.join(where)}: {reason}", flush=True)


def memory(rows: list, batch: int) -> None:
    """Rows of (path, type, value or reason)."""
    cells = [
        [
            path,
            dtype,
            *(
                [value, "", ""]
                if isinstance(value, str)
                else [value["ours_mib"], value["before_mib"], value["most_mib"]]
            ),
        ]
        for path, dtype, value in rows
    ]
    table(
        [
            "path",
            "type",
            f"MiB of ours at a batch of {batch}",
            "on the card before",
            "on the card at most",
        ],
        cells,
    )


def service(rows: list, clients: int, batch: int) -> None:
    """Rows of (path, type, value or reason, what `imgclass bench` reports alone)."""
    cells = []
    for path, dtype, value, alone in rows:
        if isinstance(value, str):
            cells.append([path, dtype, value, "", "", ""])
            continue
        rate = value["images_per_second"]
        answers = ", ".join(
            f"{row['count']} times {status}" for status, row in value["statuses"].items()
        )
        ok = value["statuses"].get("200", {})
        share = f"{rate / alone['images_per_second']:.0%}" if alone else ""
        cells.append([path, dtype, f"{rate:.1f}", share, f"{ok.get('median_ms', 0):.1f}", answers])
    heads = [
        "path",
        "type",
        f"images/s of {clients} clients",
        f"share of bench at a batch of {batch}",
    ]
    table([*heads, "median, ms", "answers"], cells)


def sanitizer(rows: list) -> None:
    """Rows of (path, type, value or reason)."""
    cells = [
        [path, dtype, value if isinstance(value, str) else value["errors"]]
        for path, dtype, value in rows
    ]
    table(["path", "type", "memory errors found by compute-sanitizer in one pass"], cells)
