# SPDX-License-Identifier: BSD-3-Clause
"""Writes winograd_points.h: `python csrc/body/winograd_points.py > csrc/body/winograd_points.h`.

Cook-Toom interpolation in exact rationals. F(m, r) computes m outputs of an r-tap correlation from alpha = m + r - 1
inputs, through the points 0, +-p_1, ..., +-p_P and infinity (alpha = 2P + 2):

    y = A^T [(G g) * (B^T x)]      Q(t) = prod_k (t - p_k^2)      Q_k(t) = Q(t) / (t - p_k^2)

    B^T x: row 0 is Q(S^2), the last row S Q(S^2), rows +-p_k are S (S +- p_k) Q_k(S^2), where S^j stands for x[j]
    G g:   row 0 is g[0] / Q(0), the last row g[r-1], rows +-p_k are sum_j (+-p_k)^j g[j] / (2 p_k^2 Q_k(p_k^2))
    A^T s: y[i] = sum_k p_k^i (s[+p_k] + (-1)^i s[-p_k]), plus s[0] for i = 0 and s[infinity] for i = m - 1

Sources: S. Winograd, Arithmetic Complexity of Computations (1980); A. Lavin and S. Gray, Fast Algorithms for
Convolutional Neural Networks (2016); for the choice of points B. Barabasz et al., Error Analysis and Improving the
Accuracy of Winograd Convolution for Deep Neural Networks (2020).
"""

from fractions import Fraction

# (m, r): the positive points. Those of alpha = 6 gave the smallest errors of the ones tried; they and their powers are exact.
KINDS = {
    (4, 3): (Fraction(5, 8), Fraction(3, 2)),
    (2, 3): (Fraction(1),),
    (2, 5): (Fraction(5, 8), Fraction(3, 2)),
    (3, 4): (Fraction(5, 8), Fraction(3, 2)),
    (3, 2): (Fraction(1),),
    (5, 2): (Fraction(5, 8), Fraction(3, 2)),
}


def product(roots: list[Fraction]) -> list[Fraction]:
    """Coefficients, lowest first, of the product of (t - root)."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *coefficients]
        coefficients = [
            a - root * b for a, b in zip(shifted, [*coefficients, Fraction(0)], strict=True)
        ]
    return coefficients


def value(coefficients: list[Fraction], t: Fraction) -> Fraction:
    return sum((c * t**i for i, c in enumerate(coefficients)), Fraction(0))


def constants(m: int, r: int) -> dict[str, list]:
    """The tables of fc_winograd, as rationals."""
    points = KINDS[m, r]
    squares = [p * p for p in points]
    q = product(squares)
    q_k = [product(squares[:k] + squares[k + 1 :]) for k in range(len(points))]
    norms = [2 * s * value(c, s) for s, c in zip(squares, q_k, strict=True)]
    return {
        "point": list(points),
        "q": q[:-1],
        "q_k": [c[:-1] for c in q_k],
        "g_0": [1 / q[0]],
        "g_k": [[p**j / n for j in range(r)] for p, n in zip(points, norms, strict=True)],
        "power": [[p**i for i in range(m)] for p in points],
    }


def matrices(
    m: int, r: int
) -> tuple[list[list[Fraction]], list[list[Fraction]], list[list[Fraction]]]:
    """(A^T, G, B^T) written out, for tests and readers."""
    c, points, alpha = constants(m, r), KINDS[m, r], m + r - 1
    zero = Fraction(0)

    def spread(coefficients: list[Fraction], shift: int) -> list[Fraction]:
        row = [zero] * alpha
        for j, value_j in enumerate([*coefficients, Fraction(1)]):
            row[2 * j + shift] = value_j
        return row

    signed = [(k, sign) for k in range(len(points)) for sign in (1, -1)]
    b_t = [spread(c["q"], 0)]
    for k, sign in signed:
        odd = spread(c["q_k"][k], 1)
        b_t.append(
            [e + sign * points[k] * o for e, o in zip(spread(c["q_k"][k], 2), odd, strict=True)]
        )
    b_t.append(spread(c["q"], 1))
    g = [[c["g_0"][0] if j == 0 else zero for j in range(r)]]
    g += [[sign**j * c["g_k"][k][j] for j in range(r)] for k, sign in signed]
    g.append([Fraction(j == r - 1) for j in range(r)])
    a_t = [
        [
            Fraction(i == 0),
            *(sign**i * c["power"][k][i] for k, sign in signed),
            Fraction(i == m - 1),
        ]
        for i in range(m)
    ]
    return a_t, g, b_t


def literal(value: list | Fraction) -> str:
    if isinstance(value, list):
        return "{" + ", ".join(map(literal, value)) + "}" if value else "{0}"
    return (
        f"{value.numerator}.0 / {value.denominator}"
        if value.denominator > 1
        else f"{value.numerator}"
    )


def main() -> None:
    print("/* SPDX-License-Identifier: BSD-3-Clause */")
    print("/* Written by winograd_points.py, which explains the tables. */")
    print("/* clang-format off */")
    for m, r in KINDS:
        print(f"static const fc_winograd fc_winograd_{m}_{r} = {{")
        print(f"    .m = {m}, .r = {r}, .pairs = {len(KINDS[m, r])},")
        for name, table in constants(m, r).items():
            print(f"    .{name} = {literal(table)},")
        print("};")
    print("/* clang-format on */")


if __name__ == "__main__":
    main()
