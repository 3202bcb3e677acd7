"""The MATLAB export in a real receiver: GNU Octave with its control package.

Not skipped where Octave is missing: then nothing has shown that the export works.
"""

import re
import shutil
import subprocess

import numpy as np
import pytest
import scipy.io
import xarray as xr
from scipy.linalg import block_diag

from depthsys import ltv
from depthsys.export.golden import golden_trajectory
from depthsys.export.matlab import from_matlab, to_matlab
from depthsys.export.schema import migrated
from tests.export.systems import SYSTEMS, random_system, varying_system, with_companions
from tests.export.test_matlab import assert_refused_when_cut

pytestmark = pytest.mark.octave

# in every script: the functions of the export in that folder, and of no other
PRELUDE = """
1;
function enter(folder)
  cd(folder);
  clear('-f', 'selfcheck', 'plant_*');
end
function text = caught(command)
  text = '';
  try
    eval(command);
  catch e
    text = [e.identifier, ': ', e.message];
  end
end
"""


def octave(script, folder) -> str:
    """Run a script in a folder and return what it prints; an error in Octave is one here."""
    (folder / "script.m").write_text(PRELUDE + script, encoding="ascii")
    command = ["octave", "--no-gui", "--quiet", "--no-history", "--norc", str(folder / "script.m")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def loaded(path) -> dict:
    return scipy.io.loadmat(path, squeeze_me=False)


def layer_last(system, names="ABCD") -> dict[str, np.ndarray]:
    return {name: system[name].values.transpose(1, 2, 0) for name in names}


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """Every system in both versions, in folders s0_5, s0_73, s1_5, ..."""
    root = tmp_path_factory.mktemp("exports")
    systems = {}
    for i, make in enumerate(SYSTEMS.values()):
        for version in ("5", "7.3"):
            name = f"s{i}_{version.replace('.', '')}"
            systems[name] = migrated(with_companions(make()))
            to_matlab(systems[name], root / name, name=name, version=version)
    return root, systems


def test_the_selfcheck_passes_in_both_versions(exports):
    root, systems = exports
    script = "".join(f"enter('{root / name}'); selfcheck;\n" for name in systems)
    lines = octave(script, root).splitlines()
    assert lines[1::2] == [f"checked: {root.resolve() / name / name}.mat" for name in systems]
    for line, (name, system) in zip(lines[::2], systems.items(), strict=True):
        sizes = [system.sizes[d] for d in ("layer", "state", "input", "output")]
        wanted = "depthsys selfcheck: PASS - system {}, L = {} layers, n = {} states, m = {} inputs"
        assert line.startswith(wanted.format(name, *sizes))
        found = re.search(rf", p = {sizes[3]} outputs; largest relative error (\S+)$", line)
        assert found
        assert float(found[1]) < 1e-12


def test_data_function_simulation_and_loader_give_the_system(exports, tmp_path):
    """The matrices at every k, rounded and clamped; a run; the ss models with their labels."""
    root, systems = exports
    script = "pkg load control\n"
    for name, system in systems.items():
        L = system.sizes["layer"]
        script += f"""
        enter('{root / name}');
        ks = [-3, -0.2, 0:{L}, {L} - 0.4, {L} + 0.4, {L} + 7];
        A = {{}}; B = {{}}; C = {{}}; D = {{}}; rest = {{}};
        for i = 1:numel(ks)
          [A{{i}}, B{{i}}, C{{i}}, D{{i}}, E, dx0, x0, u0, y0, delays] = {name}_data(ks(i));
          rest{{i}} = [E, dx0, x0, u0, y0, delays];
        end
        given = load('{tmp_path / name}_in.mat');
        [x, y] = {name}_simulate(given.x0, given.u);
        [sys, S] = {name}_load();
        models = cell(1, numel(sys));
        for l = 1:numel(sys)
          models{{l}} = {{sys{{l}}.a, sys{{l}}.b, sys{{l}}.c, sys{{l}}.d, sys{{l}}.tsam}};
        end
        inname = get(sys{{end}}, 'inname'); outname = get(sys{{end}}, 'outname');
        stname = get(sys{{end}}, 'stname'); labels = S.output_name; x_ref = S.x_ref;
        about = S.about;
        save('-v7', '{tmp_path / name}_out.mat', 'ks', 'A', 'B', 'C', 'D', 'rest', 'x', 'y', ...
             'models', 'inname', 'outname', 'stname', 'labels', 'x_ref', 'about');
        """
        random = np.random.default_rng(9)
        u = random.standard_normal((system.sizes["input"], L))
        x0 = random.standard_normal((system.sizes["state"], 1))
        x0[int(system["order"][0]) :] = 0
        scipy.io.savemat(tmp_path / f"{name}_in.mat", {"u": u, "x0": x0})
    octave(script, tmp_path)
    for name, system in systems.items():
        found, given = loaded(f"{tmp_path / name}_out.mat"), loaded(f"{tmp_path / name}_in.mat")
        assert_data_function(found, system)
        run = ltv.simulate(system, given["u"].T, given["x0"][:, 0])
        for key in "xy":
            np.testing.assert_allclose(found[key].T, run[key], rtol=1e-10, atol=1e-10)
        assert_models(found, system)
        np.testing.assert_array_equal(found["x_ref"].T, system["x_ref"])


def assert_data_function(found, system):
    L = system.sizes["layer"]
    for i, k in enumerate(found["ks"].ravel()):
        for key in "ABCD":
            at = int(np.clip(round(k), 0, L - 1 if key in "AB" else L))
            np.testing.assert_array_equal(found[key][0, i], system[key].values[at])
        assert found["rest"][0, i].size == 0


def assert_models(found, system):
    assert found["models"].shape == (1, system.sizes["layer"])
    for layer, model in enumerate(found["models"].ravel()):
        for key, matrix in zip("ABCD", model.ravel(), strict=False):
            np.testing.assert_array_equal(matrix, system[key].values[layer])
        assert model[0, 4].item() == 1
    names = [str(c.item()) for c in found["inname"].ravel()]
    assert names == system["input_name"].values.tolist()
    wanted = [f"Ma\\xdf {i}" for i in range(system.sizes["output"])]
    for key in ("outname", "labels"):
        assert [str(c.item()) for c in found[key].ravel()] == wanted
    assert found["stname"].ravel()[0].item() == "x1"
    assert found["about"].item().startswith('{"format": "depthsys system"')


def test_gramians_of_the_embedding_are_ours(tmp_path):
    """Built in Octave from the arrays, solved by the control package: blkdiag(P_0, ..., P_L)."""
    system = random_system()
    to_matlab(system, tmp_path / "out", name="plant")
    script = f"""
    pkg load control
    enter('{tmp_path / "out"}');
    S = plant_arrays();
    [n, m, L] = size(S.B); p = size(S.C, 1);
    A = zeros((L + 1) * n); B = zeros((L + 1) * n, L * m); C = []; D = zeros((L + 1) * p, L * m);
    for l = 1:L
      A(l * n + (1:n), (l - 1) * n + (1:n)) = S.A(:, :, l);
      B(l * n + (1:n), (l - 1) * m + (1:m)) = S.B(:, :, l);
      D((l - 1) * p + (1:p), (l - 1) * m + (1:m)) = S.D(:, :, l);
    end
    for k = 1:L + 1
      C = blkdiag(C, S.C(:, :, k));
    end
    sys = ss(A, B, C, D, 1);
    P = gram(sys, 'c'); Q = gram(sys, 'o'); P_lyap = dlyap(A, B * B.');
    values = hsvd(sys);
    save('-v7', '{tmp_path}/out.mat', 'P', 'Q', 'P_lyap', 'values');
    """
    octave(script, tmp_path)
    found = loaded(tmp_path / "out.mat")
    P = block_diag(*ltv.reachability_gramian(system).values)
    Q = block_diag(*ltv.observability_gramian(system).values)
    for key, ours in (("P", P), ("P_lyap", P), ("Q", Q)):
        assert np.linalg.norm(found[key] - ours) <= 1e-10 * np.linalg.norm(ours)
    ours = np.sort(ltv.hankel_singular_values(system).values.ravel())[::-1]
    theirs = np.sort(found["values"].ravel())[::-1]
    np.testing.assert_allclose(theirs[: ours.size], ours, rtol=1e-8, atol=1e-8 * ours[0])


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory):
    """Messages of the selfcheck on files that were changed on purpose."""
    root = tmp_path_factory.mktemp("spoilt")
    arrays = layer_last(random_system())
    changes = {
        "transposed": {"A": arrays["A"].transpose(1, 0, 2)},
        "shifted": {n: np.roll(arrays[n], 1, axis=2) for n in "AB"},
        "scaled": {"C": arrays["C"] * (1 + 1e-7 * (np.arange(6) == 4))},
        "reversed": {"B": arrays["B"].transpose(2, 1, 0)},
        "not_a_number": {"D": arrays["D"] * np.where(np.arange(6) == 2, np.nan, 1)},
    }
    script = ""
    for name, change in changes.items():
        to_matlab(random_system(), root / name, name="plant")
        file = root / name / "plant.mat"
        content = {k: v for k, v in loaded(file).items() if not k.startswith("__")}
        scipy.io.savemat(file, content | change, long_field_names=True)
        script += f"enter('{root / name}'); disp(caught('selfcheck'));\n"
    to_matlab(random_system(), root / "handmade", name="plant")
    data = root / "handmade" / "plant_data.m"
    data.write_text(data.read_text().replace("min(k, L) + 1", "max(k, 1)"))
    script += f"enter('{root / 'handmade'}'); disp(caught('selfcheck'));\n"
    return dict(zip([*changes, "handmade"], octave(script, root).splitlines(), strict=True))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("transposed", r"by the arrays: .* in x at depth 1 .*every A transposed: a reader has rev"),
        (
            "shifted",
            r"does not replay .* by the arrays: relative error \S+ in x at depth 1 .*changed",
        ),
        ("scaled", r"relative error \d\.\de-0[78] in y at depth 4 \(allowed 1e-09\)"),
        ("reversed", r"B must be 3 x 2 x 5; got 5 x 2 x 3\. A reader has shuffled the axes"),
        ("not_a_number", r"relative error Inf in y at depth 2"),
        ("handmade", r"by the data function: relative error \S+ in y at depth 1"),
    ],
)
def test_the_selfcheck_fails_on_a_spoilt_file(spoilt, name, message):
    assert spoilt[name].startswith("depthsys:selfcheck: depthsys selfcheck: FAIL - system plant")
    assert re.search(message, spoilt[name])


def spoil(folder, system, change):
    """An export and one change of what its file holds."""
    to_matlab(system, folder, name="plant")
    file = folder / "plant.mat"
    content = {k: v for k, v in loaded(file).items() if not k.startswith("__")}
    scipy.io.savemat(file, content | change(content), long_field_names=True)
    return f"enter('{folder}'); disp(caught('selfcheck'));\n"


def peaked():
    """A large state at depth 1, and small ones further on."""
    system = random_system()
    system["A"] *= xr.DataArray([1e6, 1e-6, 1e-6, 1, 1], dims="layer")
    return system.assign(B=1e-6 * system["B"])


def uneven():
    """An output that is 1e12 times larger than the others."""
    system = random_system()
    return system.assign(
        {n: system[n] * xr.DataArray([1e12, 1, 1, 1], dims="output") for n in "CD"}
    )


def edited(name, where, change):
    """The change of one part of an array of the file."""

    def apply(content):
        values = content[name].copy()
        values[where] = change(values[where])
        return {name: values}

    return apply


later = np.s_[:, :, 2:]


@pytest.mark.parametrize(
    ("make", "change", "message"),
    [
        (
            peaked,
            edited("A", later, lambda v: v.transpose(1, 0, 2)),
            "x at depth 3 .*changed after",
        ),
        (peaked, edited("A", np.s_[0, 1, 4], lambda v: v * (1 + 1e-6)), "x at depth 5"),
        (uneven, edited("C", np.s_[1, :, 3], lambda v: v[::-1]), "y at depth 3"),
        (uneven, edited("C", np.s_[3, :, 5], lambda v: v[::-1]), "y at depth 5"),
        (uneven, edited("D", np.s_[2, :, 0], lambda v: v[::-1]), "y at depth 0"),
        (random_system, edited("B", np.s_[1, :, 0], lambda v: v[::-1]), "x at depth 1"),
        (
            random_system,
            edited("golden_x0", 2, lambda v: v * (1 + 1e-6)),
            "1.0e-06 in x at depth 0",
        ),
        (
            random_system,
            edited("C", np.s_[:], lambda v: v * (1 + np.array([0, 1e-8, 0, 0, 1e-5, 0]))),
            "-0[89] in y at depth 1",
        ),
        (random_system, edited("golden_x", np.s_[0, 3], lambda v: v + 1), "x at depth 3"),
        (random_system, edited("golden_u", np.s_[0, 4], lambda v: np.nan), "Inf in y at depth 4"),
        (varying_system, edited("golden_x", np.s_[3, 1], lambda v: 1e-300), "Inf in x at depth 1"),
    ],
)
def test_no_large_number_hides_a_wrong_one(tmp_path, make, change, message):
    """Every element of every step is compared with the size of its own terms."""
    script = spoil(tmp_path / "out", make(), change)
    (line,) = octave(script, tmp_path).splitlines()
    assert re.search(f"FAIL - system plant does not replay .* by the arrays: .*{message}", line)
    with pytest.raises(ValueError, match="must replay its golden trajectory"):
        from_matlab(tmp_path / "out")


def test_outputs_that_cancel_are_right(tmp_path):
    """y is rounding there, small beside |C| |x|, and another program rounds otherwise."""
    script = ""
    for i, size in enumerate((1e6, 1e7, 1e8)):
        system = random_system(n=40, m=3, seed=i, D=False)
        system["A"] *= xr.DataArray([size, 1 / size, 1, 1, 1], dims="layer")
        x = golden_trajectory(system)["x"].values[1]
        C = system["C"].values.copy()
        C[1] -= np.outer(C[1] @ x, x) / (x @ x)
        system["C"] = system["C"].dims, C
        to_matlab(system, tmp_path / f"out{i}", name="plant")
        script += f"enter('{tmp_path}/out{i}'); selfcheck;\n"
    lines = octave(script, tmp_path).splitlines()
    assert ["PASS" in line for line in lines[::2]] == 3 * [True]


def test_zeros_are_right(tmp_path):
    """Nothing but inputs, and nothing at all."""
    system = random_system()
    for name, zero in (("inputs", "AC"), ("nothing", "ABCD")):
        to_matlab(system.assign({n: 0 * system[n] for n in zero}), tmp_path / name, name="plant")
    script = "".join(f"enter('{tmp_path / n}'); selfcheck;\n" for n in ("inputs", "nothing"))
    lines = octave(script, tmp_path).splitlines()
    assert ["PASS" in line for line in lines[::2]] == 2 * [True]


def test_the_largest_error_is_told(tmp_path):
    small = edited("C", np.s_[1, :, 3], lambda v: v * (1 + 1e-10))
    line, _ = octave(spoil_passing(tmp_path / "out", small), tmp_path).splitlines()
    assert re.search(r"PASS - .* largest relative error (1\.0e-10|\d\.\de-11)$", line)


def spoil_passing(folder, change):
    return spoil(folder, random_system(), change).replace("disp(caught('selfcheck'))", "selfcheck")


def test_every_array_must_have_its_size(tmp_path):
    for_name = {"golden_x0": (3, 2), "golden_x": (3, 5), "golden_y": (4, 5), "D": (4, 2, 5)}
    script = ""
    for name, shape in for_name.items():
        ones = np.ones(shape)
        script += spoil(tmp_path / name, random_system(), lambda _, n=name, v=ones: {n: v})
    for line, name in zip(octave(script, tmp_path).splitlines(), for_name, strict=True):
        assert re.search(f"FAIL - system plant: {name} must be .*; got", line)


def test_what_octave_saved_is_refused_wherever_it_is_cut(tmp_path):
    to_matlab(with_companions(random_system()), tmp_path / "out", name="plant")
    script = f"""
    enter('{tmp_path / "out"}');
    S = plant_arrays();
    plant_save('{tmp_path}/new.mat', S.A, S.B, S.C, S.D, S.V, S.V);
    """
    octave(script, tmp_path)
    file = tmp_path / "new.mat"
    names = [name for name, _, _ in scipy.io.whosmat(file)]
    assert names[:4] == ["about", "text_variables", "state_variables", "changed_by"]
    assert (loaded(file)["golden_x0"] != 0).all()
    assert_refused_when_cut(file)


def test_wrong_use_is_explained(tmp_path):
    to_matlab(random_system(), tmp_path / "out", name="plant")
    commands = {
        "plant_load();": 'depthsys:control: plant_load needs the control package.*"pkg load contr',
        "plant_simulate(1, 2);": "depthsys:simulate: x0 must be 3 x 1; got 1 x 1",
        "plant_simulate([1; 2; 3], ones(5, 2));": "u must be 2 x 5, .* per layer; got 5 x 2",
        "plant_save(o, S.A(1:2, 1:2, :), S.B, S.C);": "B must be 2 x 2 x 5; got 3 x 2 x 5",
        "plant_save(o, S.A(:, :, 1:4), S.B, S.C);": "A must be 3 x 3 x 5; got 3 x 3 x 4",
        "plant_save(o, S.A, S.B, S.C, ones(4, 2, 6));": "D must be zero at the last depth",
        "plant_save(o, S.A, S.B, 1i * S.C);": "C must hold real, finite numbers",
        "plant_save(o, S.A / 0, S.B, S.C);": "A must hold real, finite numbers",
        "plant_save(o, 1e99 * S.A, S.B, S.C);": "must stay finite over its layers",
        "plant_save(o, S.A, S.B, S.C, S.D, 1);": "V and W must be given together",
        "plant_save(o, S.A, S.B, S.C, S.D, ones(7, 3, 6), 1);": "W must be 7 x 3 x 6; got 1 x 1",
        "plant_save(o, S.A, S.B, S.C, S.D, ones(7, 2, 6), 1);": "V must be 7 x 3 x 6; got 7 x 2",
        "plant_save(o, cat(4, S.A, S.A), S.B, S.C);": "A must be 3 x 3 x 5; got 3 x 3 x 5 x 2",
        "plant_save(o, S.A, S.B, 1.7e308 * sign(S.C));": "must stay finite over its layers",
        "plant_save('plant', S.A, S.B, S.C, S.D);": "Choose another name than plant.mat",
    }
    script = f"enter('{tmp_path / 'out'}');\n"
    for command in commands:
        inside = f"o = ''never.mat''; S = plant_arrays(); {command.replace(chr(39), chr(39) * 2)}"
        script += f"disp(caught('{inside}'));\n"
    lines = octave(script, tmp_path).splitlines()
    for line, message in zip(lines, commands.values(), strict=True):
        assert re.search(message, line)
    assert not (tmp_path / "out" / "never.mat").exists()
    # 2 GB are too much to try
    assert "8 * numel(array), S) >= 2 ^ 31" in (tmp_path / "out" / "plant_save.m").read_text()


REDUCE = """
% square-root balanced truncation of an LTV system to r states: factors, then bases
function [A, B, C, V, W] = reduced(S, r)
  [n, m, L] = size(S.B);
  R = cell(1, L + 1); O = cell(1, L + 1);
  R{1} = eye(n); O{L + 1} = S.C(:, :, L + 1).';
  for l = 1:L
    R{l + 1} = [S.A(:, :, l) * R{l}, S.B(:, :, l)];
  end
  for l = L:-1:1
    O{l} = [S.A(:, :, l).' * O{l + 1}, S.C(:, :, l).'];
  end
  V = zeros(n, r, L + 1); W = V;
  for k = 1:L + 1
    [U, s, Z] = svd(O{k}.' * R{k}, 'econ');
    root = diag(1 ./ sqrt(diag(s)(1:r)));
    V(:, :, k) = R{k} * Z(:, 1:r) * root;
    W(:, :, k) = O{k} * U(:, 1:r) * root;
  end
  A = zeros(r, r, L); B = zeros(r, m, L); C = zeros(size(S.C, 1), r, L + 1);
  for l = 1:L
    A(:, :, l) = W(:, :, l + 1).' * S.A(:, :, l) * V(:, :, l);
    B(:, :, l) = W(:, :, l + 1).' * S.B(:, :, l);
  end
  for k = 1:L + 1
    C(:, :, k) = S.C(:, :, k) * V(:, :, k);
  end
end
"""


@pytest.fixture(scope="module")
def sent_back(exports, tmp_path_factory):
    """Reduced in Octave, saved, and what Octave simulated with it: by export and order."""
    root, systems = exports
    place = tmp_path_factory.mktemp("sent_back")
    cases = {"s0_5": 2, "s0_73": 1, "s5_5": 3, "s5_73": 5, "s2_5": 1, "s3_73": 2, "s4_5": 1}
    script = REDUCE
    for name, r in cases.items():
        bases = f"S.V_new = zeros(7, {r}, L + 1); S.W_new = S.V_new;\n"
        bases += "for k = 1:L + 1\n"
        bases += "S.V_new(:, :, k) = S.V(:, :, k) * V(:, :, k);\n"
        bases += "S.W_new(:, :, k) = S.V(:, :, k) * W(:, :, k);\nend\n"
        with_bases = name in ("s0_5", "s2_5", "s3_73")
        script += f"""
        enter('{root / name}');
        S = {name}_arrays(); L = size(S.C, 3) - 1;
        [A, B, C, V, W] = reduced(S, {r});
        {bases if with_bases else ""}
        T.A = A; T.B = B; T.C = C; T.D = S.D;
        u = S.golden_u + 1; x0 = (1:{r}).';
        [x, y] = {name}_simulate(x0, u, T);
        {name}_save('{place / name}_new', A, B, C, S.D{", S.V_new, S.W_new" if with_bases else ""});
        save('-v7', '{place / name}_run.mat', 'A', 'B', 'C', 'V', 'u', 'x0', 'x', 'y');
        """
    # one state, one layer; D left out; a number for a matrix
    script += f"""
    enter('{root / "s2_73"}');
    s2_73_save('{place}/tiny.mat', 0.5, -2, cat(3, 0, 1));
    """
    octave(script, place)
    return place, {name: (systems[name], r) for name, r in cases.items()}


def test_a_reduced_system_comes_back_as_octave_simulated_it(sent_back):
    place, cases = sent_back
    for name, (system, r) in cases.items():
        found, run = from_matlab(place / f"{name}_new.mat"), loaded(place / f"{name}_run.mat")
        assert found.sizes["state"] == r
        assert (found["order"] == r).all()
        ours = ltv.simulate(found, run["u"].T, run["x0"][:, 0])
        for key in "xy":
            np.testing.assert_allclose(run[key].T, ours[key], rtol=1e-12, atol=1e-12)
        for key in "ABC":
            stack = run[key].reshape(*run[key].shape[:2], -1)  # one layer: Octave drops the dim
            np.testing.assert_array_equal(found[key], stack.transpose(2, 0, 1))
        np.testing.assert_array_equal(found["D"], system["D"])


def test_a_reduced_system_keeps_its_provenance_and_drops_the_old_state(sent_back):
    place, cases = sent_back
    for name, (system, r) in cases.items():
        found = from_matlab(place / f"{name}_new.mat")
        kept = [n for n in system.variables if not {"state", "state_next"} & set(system[n].dims)]
        for key in set(kept) - {"D", "order"}:
            xr.testing.assert_identical(found[key].variable, system[key].variable)
            assert found[key].dtype == system[key].dtype
        assert "x_ref" not in found
        assert ("V" in found) == (name in ("s0_5", "s2_5", "s3_73"))
        assert re.fullmatch(r"GNU Octave 7\S+, \d{4}(-\d\d){2} \d\d(:\d\d){2}", found.changed_by)
        assert "import_note" not in found.attrs  # its golden trajectory was replayed
        same = {k: v for k, v in system.attrs.items() if k not in ("order", "schema_version")}
        assert {k: found.attrs[k] for k in same} == same
        assert found.attrs.get("order", r) == r


def test_bases_come_back_and_the_smallest_system(sent_back):
    place, cases = sent_back
    system, _ = cases["s0_5"]
    V = from_matlab(place / "s0_5_new.mat")["V"]
    run = loaded(place / "s0_5_run.mat")
    wanted = np.einsum("dfn,nrd->dfr", system["V"].values, run["V"])
    np.testing.assert_allclose(V.transpose("depth", "feature", "state"), wanted, rtol=1e-12)
    tiny = from_matlab(place / "tiny.mat")
    assert [tiny[k].values.ravel().tolist() for k in "ABCD"] == [
        [0.5],
        [-2.0],
        [0.0, 1.0],
        [0.0, 0.0],
    ]


def test_labels_of_every_kind_survive_octave(tmp_path):
    labels = ["", "Maß π", r"\theta", "two\nlines", " x "]
    system = random_system(p=5).assign_coords(output_name=("output", np.array(labels)))
    script = "pkg load control\n"
    for name, version in (("a", "5"), ("b", "7.3")):
        to_matlab(system, tmp_path / name, name=name, version=version)
        script += f"""
        enter('{tmp_path / name}');
        [sys, S] = {name}_load(); disp(strjoin(get(sys{{2}}, 'outname').', '|'));
        {name}_save('{tmp_path}/{name}_new', S.A, S.B, S.C, S.D);
        """
    shown = "|".join(["", r"Ma\xdf \u03c0", r"\theta", r"two\x0alines", " x "])
    assert octave(script, tmp_path).splitlines() == [shown, shown]
    for name in "ab":
        found = from_matlab(tmp_path / f"{name}_new.mat")
        assert found["output_name"].values.tolist() == labels
        xr.testing.assert_equal(found, migrated(system))


def test_one_empty_label_is_one_label(tmp_path):
    """Of version 7.3 Octave reads an empty text as its sizes."""
    system = random_system(p=1).assign_coords(output_name=("output", np.array([""])))
    script = ""
    for name, version in (("a", "5"), ("b", "7.3")):
        to_matlab(system, tmp_path / name, name=name, version=version)
        assert from_matlab(tmp_path / name)["output_name"].values.tolist() == [""]
        script += f"enter('{tmp_path / name}'); S = {name}_arrays();\n"
        script += "disp(size(S.output_name)); disp(isempty(S.output_name{1}));\n"
    assert octave(script, tmp_path).split() == 2 * ["1", "1", "1"]


def test_a_file_of_the_engineers_own_is_read(tmp_path):
    """Written by Octave from nothing but arrays."""
    script = f"""
    A = reshape(1:18, 3, 3, 2) / 20; B = ones(3, 1, 2); C = zeros(1, 3, 3); C(1, 2, 3) = 1;
    name = 'plant'; extra.a = 1;
    save('-v7', '{tmp_path}/v7.mat', 'A', 'B', 'C', 'name', 'extra');
    save('-v6', '{tmp_path}/v6.mat', 'A', 'B', 'C', 'name', 'extra');
    save('-text', '{tmp_path}/text.mat', 'A', 'B', 'C');
    save('-hdf5', '{tmp_path}/hdf5.mat', 'A', 'B', 'C');
    """
    octave(script, tmp_path)
    for kind in ("v7", "v6"):
        found = from_matlab(tmp_path / f"{kind}.mat")
        assert found["A"].values[1, 0, 2] == 16 / 20
        assert found["C"].values[2].tolist() == [[0, 1, 0]]
    with pytest.raises(ValueError, match=r"whole \.mat file.*'-v7'"):
        from_matlab(tmp_path / "text.mat")
    with pytest.raises(ValueError, match="must hold arrays A, B and C"):
        from_matlab(tmp_path / "hdf5.mat")


def test_the_folder_works_from_elsewhere(exports, tmp_path):
    """Copied to another place and reached by addpath."""
    root, _ = exports
    shutil.copytree(root / "s0_73", tmp_path / "moved")
    script = f"addpath('{tmp_path / 'moved'}'); selfcheck;"
    lines = octave(script, tmp_path).splitlines()
    assert "PASS" in lines[0]
    assert lines[1:] == [f"checked: {tmp_path.resolve() / 'moved' / 's0_73.mat'}"]


def test_the_selfcheck_reads_what_is_on_disk(tmp_path):
    """The same session, after another file of the same size took the place of the first."""
    for folder in ("out", "other"):
        to_matlab(random_system(seed=len(folder)), tmp_path / folder, name="plant")
    to_matlab(random_system(L=7), tmp_path / "long", name="plant")
    content = loaded(tmp_path / "other" / "plant.mat")
    content = {n: v for n, v in content.items() if not n.startswith("__")}
    turned = content | {"A": content["A"].transpose(1, 0, 2)}
    scipy.io.savemat(tmp_path / "turned.mat", turned, long_field_names=True)
    file = tmp_path / "out" / "plant.mat"
    script = f"""
    addpath('{tmp_path / "out"}');
    selfcheck; before = plant_arrays();
    copyfile('{tmp_path}/turned.mat', '{file}');
    disp(caught('selfcheck'));
    copyfile('{tmp_path}/other/plant.mat', '{file}');
    system('touch -d "2020-01-01" {file}');
    after = plant_arrays(); wanted = load('{file}');
    disp([isequal(after.A, before.A), isequal(after.A, wanted.A)]);
    system('touch -r {file} {tmp_path}/stamp');
    copyfile('{tmp_path}/long/plant.mat', '{file}');
    system('touch -r {tmp_path}/stamp {file}');
    disp(size(plant_arrays().A));
    [S, name] = plant_arrays('reload'); disp(name);
    disp(caught('plant_arrays(1)'));
    delete('{file}'); disp(caught('plant_arrays();'));
    copyfile('{tmp_path}/other/plant.mat', '{file}');
    selfcheck;
    """
    lines = octave(script, tmp_path).splitlines()
    assert "PASS" in lines[0]
    assert re.search("FAIL - .* with every A transposed", lines[2])
    assert lines[3].split() == ["0", "1"]
    assert lines[4].split() == ["3", "3", "7"]  # another size, and the date of before
    assert lines[5] == str(file)
    assert lines[6].startswith("depthsys:arrays: The argument must be 'reload', or none.")
    assert "unable to find file" in lines[7]
    assert "PASS" in lines[8]


def test_the_arrays_are_read_once(tmp_path):
    """The data function asks for them at every step."""
    to_matlab(random_system(), tmp_path / "out", name="plant")
    file = tmp_path / "out" / "plant.mat"
    script = f"""
    addpath('{tmp_path / "out"}');
    first = plant_arrays();
    system('cp -p {file} {tmp_path}/kept; head -c {file.stat().st_size} /dev/zero > {file}');
    system('touch -r {tmp_path}/kept {file}');
    disp(isequal(plant_arrays().A, first.A));
    """
    assert octave(script, tmp_path).split() == ["1"]


def test_the_selfcheck_of_another_folder_is_not_taken_for_this_one(tmp_path):
    """Functions stay in memory in a script that goes from one export to another."""
    folders = {"one": "plant", "two": "plant", "three": "rod"}
    for i, (folder, name) in enumerate(folders.items()):
        to_matlab(random_system(seed=i), tmp_path / folder, name=name)
    (tmp_path / "link").symlink_to(tmp_path / "two")
    (tmp_path / "mixed").mkdir()
    shutil.copy(tmp_path / "two" / "selfcheck.m", tmp_path / "mixed")
    script = f"""
    cd('{tmp_path / "one"}'); selfcheck;
    cd('../two'); disp(caught('selfcheck'));
    cd('../three'); disp(caught('selfcheck'));
    cd('../two'); clear -f selfcheck plant_*
    selfcheck;
    cd('{tmp_path}'); addpath('{tmp_path / "link"}'); clear -f selfcheck plant_*
    selfcheck; cd('two'); selfcheck; cd('../link'); selfcheck;
    cd('{tmp_path}'); rmpath('{tmp_path / "link"}'); clear -f selfcheck plant_*
    addpath('{tmp_path / "one"}'); addpath('{tmp_path / "mixed"}'); disp(caught('selfcheck'));
    """
    lines = octave(script, tmp_path).splitlines()
    home = tmp_path.resolve()
    asks = r'Run "clear -f selfcheck plant_\*" and try again'
    for i, folder in ((2, "two"), (3, "three")):
        wanted = (
            f"FAIL - the functions .* folder, {home / folder}, which .* of {home / 'one'}. {asks}"
        )
        assert re.match(f"depthsys:selfcheck: depthsys selfcheck: {wanted}", lines[i])
    assert lines[1] == f"checked: {home}/one/plant.mat"
    assert [lines[i] for i in (5, 7, 9, 11)] == 4 * [f"checked: {home}/two/plant.mat"]
    wanted = f"in one folder, {home / 'mixed'}; got plant_arrays of {home / 'one'}. {asks}"
    assert re.search(f"FAIL - its functions must lie {wanted}", lines[12])


def test_a_path_may_be_relative(tmp_path):
    to_matlab(random_system(), tmp_path / "out", name="plant")
    script = "addpath('out'); selfcheck; selfcheck;"
    assert octave(script, tmp_path).count(f"checked: {tmp_path.resolve()}/out/plant.mat") == 2


def test_a_model_of_octave_is_named_as_what_was_not_read(tmp_path):
    script = f"""
    pkg load control
    sys = ss(0.5, 1, 1, 0, 1);
    save('-v7', '{tmp_path}/model.mat', 'sys');
    """
    octave(script, tmp_path)
    with pytest.raises(ValueError, match=r"with \[\]\. `sys` is an object; save its arrays\."):
        from_matlab(tmp_path / "model.mat")
