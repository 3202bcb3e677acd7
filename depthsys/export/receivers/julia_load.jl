# DEPTH_SYSTEM: a linear time-varying system, written by depthsys.
#
#     x[l+1] = A[l] x[l] + B[l] u[l]      l = 0..L-1
#     y[k]   = C[k] x[k] + D[k] u[k]      k = 0..L, no input at depth L
#
# Layers and depths count from 0 there, Julia counts from 1: A[l] is S.A[:, :, l+1].
#
#     include("load_DEPTH_SYSTEM.jl")
#     S = DepthSystem.load()             # arrays, replayed against the golden trajectory
#     sys = DepthSystem.models(S)        # sys[l+1] = ss(A[l], B[l], C[l], D[l], 1)
#
# Needs MAT and ControlSystemsBase: import Pkg; Pkg.add(["MAT", "ControlSystemsBase"])
# This file was not run before it was shipped: no Julia was at hand. The check below tells.

module DepthSystem

using LinearAlgebra: norm
using MAT: matread
using ControlSystemsBase: ss

const FILE = joinpath(@__DIR__, "DEPTH_SYSTEM.mat")
const RTOL = 1e-9

"""
    load(file)

The arrays A (n,n,L), B (n,m,L), C (p,n,L+1), D (p,m,L+1), the labels and the golden trajectory,
after replaying it. `about` is a JSON text with dims, units and provenance, `variables` a Dict of
everything in the file.
"""
function load(file = FILE)
    v = matread(file)
    # the file drops trailing dims of size 1, and a 1 x 1 array is read as a number
    n, L = size(v["golden_x"], 1), size(v["golden_x"], 2) - 1
    p, m = size(v["golden_y"], 1), length(v["golden_u"]) ÷ L
    S = (
        A = restored("A", v["A"], n, n, L),
        B = restored("B", v["B"], n, m, L),
        C = restored("C", v["C"], p, n, L + 1),
        D = restored("D", v["D"], p, m, L + 1),
        input_name = split(string(v["input_name"]), '\n'),
        output_name = split(string(v["output_name"]), '\n'),
        golden_x0 = vec(restored("golden_x0", v["golden_x0"], n)),
        golden_u = restored("golden_u", v["golden_u"], m, L),
        golden_x = v["golden_x"],
        golden_y = v["golden_y"],
        about = v["about"],
        variables = v,
    )
    check(S, file)
    return S
end

function restored(name, value, sizes...)
    value = value isa Number ? [value] : value
    core(s) = s[1:something(findlast(!=(1), s), 0)]  # without trailing dims of size 1
    core(size(value)) == core(sizes) || error("`$name` must be $sizes; got $(size(value)).")
    return Float64.(reshape(value, sizes...))
end

"""
    simulate(S, x0, u)

States x (n,L+1) and outputs y (p,L+1) of depths 0..L from x0 (n) and u (m,L).
"""
function simulate(S, x0, u; A = S.A)
    L = size(S.B, 3)
    x, y = zeros(size(S.B, 1), L + 1), zeros(size(S.C, 1), L + 1)
    x[:, 1] = x0
    for l in 1:L
        y[:, l] = S.C[:, :, l] * x[:, l] + S.D[:, :, l] * u[:, l]
        x[:, l+1] = A[:, :, l] * x[:, l] + S.B[:, :, l] * u[:, l]
    end
    y[:, L+1] = S.C[:, :, L+1] * x[:, L+1]
    return x, y
end

"""
    models(S)

One discrete-time model per layer, with sampling time 1. C[L], which reads the final state, is in
S.C only.
"""
models(S) = [ss(S.A[:, :, l], S.B[:, :, l], S.C[:, :, l], S.D[:, :, l], 1) for l in 1:size(S.B, 3)]

function check(S, file)
    x, y = simulate(S, S.golden_x0, S.golden_u)
    worst = max(relative(x, S.golden_x), relative(y, S.golden_y))
    n, m, L = size(S.B)
    if worst <= RTOL
        println(
            "depthsys selfcheck: PASS - system DEPTH_SYSTEM, L = $L layers, n = $n states, " *
            "m = $m inputs, p = $(size(S.C, 1)) outputs; largest relative error $worst",
        )
        println("checked: ", abspath(file))
        return
    end
    x, y = simulate(S, S.golden_x0, S.golden_u; A = permutedims(S.A, (2, 1, 3)))
    turned = max(relative(x, S.golden_x), relative(y, S.golden_y)) <= RTOL
    hint = turned ? " It does with every A transposed: a reader has reversed the axes." : ""
    error(
        "depthsys selfcheck: FAIL - system DEPTH_SYSTEM does not replay its golden trajectory: " *
        "relative error $worst (allowed $RTOL).$hint",
    )
end

"The largest error of a depth, relative to the largest norm up to there."
function relative(got, wanted)
    scale, worst = 0.0, 0.0
    for k in axes(wanted, 2)
        scale = max(scale, norm(wanted[:, k]))
        worst = max(worst, norm(got[:, k] - wanted[:, k]) / (scale > 0 ? scale : 1.0))
    end
    return isnan(worst) ? Inf : worst
end

end
