"""The loops behind `tsne.py`, compiled by numba: calibrated neighbourhoods, forces, one step of descent.

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
def _exp(x):
    """e^x for -700 <= x <= 0 to 4e-14, written out because numba's own `exp` does not vectorise."""
    k = np.rint(x * 1.4426950408889634)
    r = x - k * 0.6931471805599453
    p = 1 / 39916800
    p = p * r + 1 / 3628800
    p = p * r + 1 / 362880
    p = p * r + 1 / 40320
    p = p * r + 1 / 5040
    p = p * r + 1 / 720
    p = p * r + 1 / 120
    p = p * r + 1 / 24
    p = p * r + 1 / 6
    p = p * r + 0.5
    p = p * r + 1.0
    p = p * r + 1.0
    return p * np.int64((np.int64(np.int32(k)) + 1023) << 52).view(np.float64)


@_compiled
def calibrate(squared, own, target, conditional):
    """Conditional probabilities p(j|i) whose entropy is `target` = ln perplexity, a row per point.

    `own` is the column of the first row's own point (it grows by one a row and gets probability 0), or -1 where the
    columns are neighbours and hold no own point. scikit-learn bisects until the entropy is within 1e-5; Newton's method
    on the logarithm of the precision, with bisection where it leaves the bracket, gets within 1e-10 in a few rounds.
    Where more points tie at the smallest distance than the perplexity asks for, the entropy cannot come down to the
    target: the precision grows without end and the tied points share the row evenly (as in scikit-learn).
    """
    rows, columns = squared.shape
    gaps = np.empty(columns)
    weights = np.empty(columns)
    for r in range(rows):
        skip = own + r if own >= 0 else -1
        count = 0
        for j in range(columns):
            if j != skip:
                gaps[count] = squared[r, j]
                count += 1
        nearest = np.inf
        for j in range(count):
            nearest = min(nearest, gaps[j])
        mean = 0.0
        for j in range(count):
            gaps[j] -= nearest
            mean += gaps[j]
        mean /= count
        if mean > 0.0:
            for j in range(count):
                gaps[j] /= mean  # precisions below are in units of 1 / mean: one start serves every scale
        precision = 1.0
        low = 0.0
        high = np.inf
        total = 0.0
        for _ in range(200):
            total = 0.0
            first = 0.0
            second = 0.0
            for j in range(count):
                weight = _exp(max(-700.0, -gaps[j] * precision))
                weights[j] = weight
                total += weight
                first += weight * gaps[j]
                second += weight * gaps[j] * gaps[j]
            first /= total
            excess = np.log(total) + precision * first - target
            if abs(excess) <= 1e-10 or mean == 0.0:
                break
            if excess > 0.0:
                low = precision
            else:
                high = precision
            if precision > 1e30 or precision < 1e-30:
                break
            # The entropy falls with the precision b: dH / d(ln b) = -b² Var(gap).
            slope = precision * precision * (second / total - first * first)
            proposal = precision * np.exp(min(3.0, max(-3.0, excess / max(slope, 1e-300))))
            if not (low < proposal < high):
                if high == np.inf:
                    proposal = precision * 8.0
                elif low == 0.0:
                    proposal = precision / 8.0
                else:
                    proposal = 0.5 * (low + high)
            if proposal == precision:
                break
            precision = proposal
        count = 0
        for j in range(columns):
            if j == skip:
                conditional[r, j] = _ZERO
            else:
                conditional[r, j] = np.float32(weights[count] / total)
                count += 1


@_compiled
def _forces(probabilities, scaled, dof, literal, low, high, forces, sums):
    """Attraction (rows 0–2 of `forces`) and repulsion (rows 3–5, still to be divided by the normaliser) of points
    low..high in up to three dimensions, and each point's sum of weights, itself included. A pair's force has the factor
    (1 + d²)^-1, or its weight where scikit-learn is taken literally."""
    x, y, z = scaled[0], scaled[1], scaled[2]
    cube = dof == 2
    square = not (cube and literal)
    for i in range(low, high):
        row = probabilities[i]
        xi = x[i]
        yi = y[i]
        zi = z[i]
        total = _ZERO
        ax = _ZERO
        ay = _ZERO
        az = _ZERO
        rx = _ZERO
        ry = _ZERO
        rz = _ZERO
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
        forces[0, i] = ax
        forces[1, i] = ay
        forces[2, i] = az
        forces[3, i] = rx
        forces[4, i] = ry
        forces[5, i] = rz
        sums[i] = total


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
    if scaled.shape[0] == 3 and dof <= 2:
        _forces(probabilities, scaled, dof, literal, low, high, forces, sums)
    else:
        _forces_general(probabilities, scaled, dof, literal, low, high, forces, sums)


@_compiled
def sparse_forces(starts, others, probabilities, scaled, dof, literal, low, high, forces, sums):
    """`_forces` where only near neighbours attract (compressed rows); the repulsion is still of all pairs, exactly."""
    x, y, z = scaled[0], scaled[1], scaled[2]
    cube = dof == 2
    square = not (cube and literal)
    for i in range(low, high):
        xi = x[i]
        yi = y[i]
        zi = z[i]
        total = _ZERO
        rx = _ZERO
        ry = _ZERO
        rz = _ZERO
        for j in range(x.size):
            dx = xi - x[j]
            dy = yi - y[j]
            dz = zi - z[j]
            root = _ONE / np.sqrt(_ONE + dx * dx + dy * dy + dz * dz)
            inverse = root * root
            weight = inverse * root if cube else inverse
            push = weight * (inverse if square else weight)
            total += weight
            rx += push * dx
            ry += push * dy
            rz += push * dz
        ax = _ZERO
        ay = _ZERO
        az = _ZERO
        for k in range(starts[i], starts[i + 1]):
            j = others[k]
            dx = xi - x[j]
            dy = yi - y[j]
            dz = zi - z[j]
            root = _ONE / np.sqrt(_ONE + dx * dx + dy * dy + dz * dz)
            pull = probabilities[k] * (root * root if square else root * root * root)
            ax += pull * dx
            ay += pull * dy
            az += pull * dz
        forces[0, i] = ax
        forces[1, i] = ay
        forces[2, i] = az
        forces[3, i] = rx
        forces[4, i] = ry
        forces[5, i] = rz
        sums[i] = total


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
