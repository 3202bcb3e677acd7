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
        golden_x = restored("golden_x", v["golden_x"], n, L + 1),
        golden_y = restored("golden_y", v["golden_y"], p, L + 1),
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
function simulate(S, x0, u)
    L = size(S.B, 3)
    x, y = zeros(size(S.B, 1), L + 1), zeros(size(S.C, 1), L + 1)
    x[:, 1] = x0
    for l in 1:L
        y[:, l] = S.C[:, :, l] * x[:, l] + S.D[:, :, l] * u[:, l]
        x[:, l+1] = S.A[:, :, l] * x[:, l] + S.B[:, :, l] * u[:, l]
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
    error_found, name, depth = worst(S, S.A)
    n, m, L = size(S.B)
    if error_found <= RTOL
        println(
            "depthsys selfcheck: PASS - system DEPTH_SYSTEM, L = $L layers, n = $n states, " *
            "m = $m inputs, p = $(size(S.C, 1)) outputs; largest relative error $error_found",
        )
        println("checked: ", abspath(file))
        return
    end
    turned = worst(S, permutedims(S.A, (2, 1, 3)))[1] <= RTOL
    hint = turned ? " It does with every A transposed: a reader has reversed the axes." : ""
    error(
        "depthsys selfcheck: FAIL - system DEPTH_SYSTEM does not replay its golden trajectory: " *
        "relative error $error_found in $name at depth $depth (allowed $RTOL).$hint",
    )
end

"""
    worst(S, A)

The error at the first depth where it is too large, or the largest; in what, at which depth.

Every step is taken from the stored state of its depth, so that no large depth or output hides a
small one.
"""
function worst(S, A)
    L = size(S.B, 3)
    x, u, y = S.golden_x, S.golden_u, S.golden_y
    errors = zeros(2, L + 1)  # of x and y
    errors[1, 1] = relative(S.golden_x0, abs.(S.golden_x0), x[:, 1])
    for k in 1:L
        errors[1, k+1] = deviation(A[:, :, k], x[:, k], S.B[:, :, k], u[:, k], x[:, k+1])
        errors[2, k] = deviation(S.C[:, :, k], x[:, k], S.D[:, :, k], u[:, k], y[:, k])
    end
    last = S.C[:, :, L+1]
    errors[2, L+1] = relative(last * x[:, L+1], abs.(last) * abs.(x[:, L+1]), y[:, L+1])
    # column by column: x before y, depth by depth
    at = something(findfirst(>(RTOL), errors), argmax(errors))
    return errors[at], "xy"[at[1]], at[2] - 1
end

deviation(A, x, B, u, wanted) =
    relative(A * x + B * u, abs.(A) * abs.(x) + abs.(B) * abs.(u), wanted)

"The largest of all elements; 0 / 0 counts 0, over an infinite size or no number Inf."
function relative(got, scale, wanted)
    difference = abs.(got - wanted)
    scale = [s == 0 || isinf(s) ? 0.0 : max(s, floatmin(Float64)) for s in scale]
    errors = difference ./ scale
    errors[isnan.(errors)] .= Inf
    errors[(difference .== 0) .& (scale .== 0)] .= 0
    return maximum(errors)
end

end
