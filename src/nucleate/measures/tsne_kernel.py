"""The loops behind `tsne.py`, compiled by numba: the forces between all points, and one step of descent.

One pass over the pairs of an iteration gathers the normaliser and both forces, so no array of n × n but the
probabilities themselves is ever touched. Coordinates lie apart (all x, all y, all z), single precision, padded to whole
vector registers: the inner loops then compile to pure vector code (measured: 2.3 to 2.6 thousand million pairs a second
on one Zen 4 core). Every row is computed the same way whatever rows its thread was given, hence equal bytes for any
number of threads.

Two frames: `layout` is what the user sees; `scaled` is layout / √dof, in which Student's t is (1 + d²)^-((dof+1)/2).
"""

import numpy as np

from nucleate.compiled import compiled

LANES = 32  # rows are padded to a multiple of this: two 512-bit registers of float32, which is how the loops unroll
# Where padding sits: its weight (1e-18 in three dimensions) is lost in every sum, its square is still a normal number
# (with padding at 1e9 the products are denormal, which cost a tenth of the speed).
FAR = np.float32(1e6)

_ZERO = np.float32(0)
_ONE = np.float32(1)


# Fast arithmetic is safe here, since the door lets in only finite numbers and no distance can leave the range.
_compiled = compiled(fastmath=True, error_model="numpy")


@_compiled
def _forces(row, scaled, i, dof, literal):
    """Of one point in up to three dimensions: attraction and repulsion (still to be divided by the normaliser) along
    each axis, and the sum of weights, its own included. `row` holds the joint probabilities. A pair's force has the
    factor (1 + d²)^-1, or its weight where scikit-learn is taken literally."""
    x, y, z = scaled[0], scaled[1], scaled[2]
    cube = dof == 2
    square = not (cube and literal)
    xi, yi, zi = x[i], y[i], z[i]
    total = ax = ay = az = rx = ry = rz = _ZERO
    for j in range(row.size):
        dx = xi - x[j]
        dy = yi - y[j]
        dz = zi - z[j]
        root = _ONE / np.sqrt(_ONE + dx * dx + dy * dy + dz * dz)
        inverse = root * root
        weight = inverse * root if cube else inverse
        factor = inverse if square else weight
        pull = row[j] * factor
        push = weight * factor
        total += weight
        ax += pull * dx
        ay += pull * dy
        az += pull * dz
        rx += push * dx
        ry += push * dy
        rz += push * dz
    return (ax, ay, az, rx, ry, rz), total


@_compiled
def _forces_general(probabilities, scaled, dof, literal, low, high, forces, sums):
    """`_forces` in any number of dimensions: dimension by dimension over a row kept in the first cache."""
    dimensions, width = scaled.shape
    root = np.empty(width, np.float32)
    weight = np.empty(width, np.float32)
    for i in range(low, high):
        row = probabilities[i]
        root[:] = _ONE
        for d in range(dimensions):
            axis = scaled[d]
            here = axis[i]
            for j in range(width):
                root[j] += (here - axis[j]) * (here - axis[j])
        total = _ZERO
        for j in range(width):
            root[j] = _ONE / np.sqrt(root[j])
            weight[j] = root[j]
        for _ in range(dof):
            for j in range(width):
                weight[j] *= root[j]
        for j in range(width):
            total += weight[j]
            root[j] = weight[j] if literal else root[j] * root[j]
        sums[i] = total
        for d in range(dimensions):
            axis = scaled[d]
            here = axis[i]
            attraction = _ZERO
            repulsion = _ZERO
            for j in range(width):
                step = root[j] * (here - axis[j])
                attraction += row[j] * step
                repulsion += weight[j] * step
            forces[d, i] = attraction
            forces[dimensions + d, i] = repulsion


@_compiled
def dense_forces(probabilities, scaled, dof, literal, low, high, forces, sums):
    """Of points low..high: attraction in the first rows of `forces` (axis by axis), repulsion in those behind them."""
    if scaled.shape[0] == 3 and dof <= 2:
        for i in range(low, high):
            found, sums[i] = _forces(probabilities[i], scaled, i, dof, literal)
            for d in range(6):
                forces[d, i] = found[d]
    else:
        _forces_general(probabilities, scaled, dof, literal, low, high, forces, sums)


@_compiled
def sparse_forces(starts, others, probabilities, scaled, dof, literal, low, high, forces, sums):
    """`dense_forces` where only near neighbours attract (compressed rows); the repulsion is still of all pairs."""
    row = np.zeros(scaled.shape[1], np.float32)
    for i in range(low, high):
        for k in range(starts[i], starts[i + 1]):
            row[others[k]] = probabilities[k]
        found, sums[i] = _forces(row, scaled, i, dof, literal)
        for d in range(6):
            forces[d, i] = found[d]
        for k in range(starts[i], starts[i + 1]):
            row[others[k]] = _ZERO


@_compiled
def step(n, forces, sums, layout, scaled, velocity, gains, dof, exaggeration, momentum, rate):
    """One step of descent with momentum and gains. Returns the normaliser and the squared norm of the gained gradient.

    `layout`, `velocity`, `gains` are (components, n); `scaled` may have further rows of zeros and padded columns.
    """
    normaliser = -np.float64(n)  # every point counted itself with weight 1
    for i in range(n):
        normaliser += sums[i]
    # Single precision cannot see weights below 1e-7 beside a point's own 1: a layout that far apart (only ever a given
    # starting layout) must not be divided by nothing.
    normaliser = max(normaliser, 1e-6 * n)
    components = layout.shape[0]
    dimensions = scaled.shape[0]
    pull = np.float32(2.0 * (dof + 1.0) / np.sqrt(np.float64(dof)) * exaggeration)
    push = np.float32(2.0 * (dof + 1.0) / np.sqrt(np.float64(dof)) / normaliser)
    shrink = np.float32(1.0 / np.sqrt(np.float64(dof)))
    inertia = np.float32(momentum)
    pace = np.float32(rate)
    norm = 0.0
    for d in range(components):
        for i in range(n):
            gradient = pull * forces[d, i] - push * forces[dimensions + d, i]
            gain = gains[d, i]
            gain = gain + np.float32(0.2) if velocity[d, i] * gradient < _ZERO else gain * np.float32(0.8)
            gain = max(gain, np.float32(0.01))
            gains[d, i] = gain
            gradient *= gain
            velocity[d, i] = inertia * velocity[d, i] - pace * gradient
            layout[d, i] += velocity[d, i]
            scaled[d, i] = layout[d, i] * shrink
            norm += np.float64(gradient) * np.float64(gradient)
    return normaliser, norm
