function selfcheck()
%SELFCHECK  Is this the system that was exported?
%   selfcheck replays the golden trajectory of rod.mat, a run that was stored with the
%   system, by the arrays and by the data function. It prints a line with PASS and one with the
%   file that was checked, or raises the error depthsys:selfcheck.
%
%   Every step is taken from the stored state of its depth, so that no large depth or output hides
%   a small one. Every element of A x + B u and C x + D u must be the stored one, with an error of
%   at most 1e-9 of |A| |x| + |B| |u| and |C| |x| + |D| |u|.
%
%   The file is read anew. Every export has a selfcheck.m: it is an error if the one that runs is
%   not that of the current folder, which may hold another export.
  here = canonical(fileparts(mfilename('fullpath')));
  check_current_folder(here);
  [S, file] = rod_arrays('reload');
  file = fullfile(canonical(fileparts(file)), 'rod.mat');
  if ~strcmp(fileparts(file), here)
    error('depthsys:selfcheck', ...
          ['depthsys selfcheck: FAIL - its functions must lie in one folder, %s; got ' ...
           'rod_arrays of %s. Run "%s" and try again.'], ...
          here, fileparts(file), clearing());
  end
  L = size(S.golden_u, 2);
  n = size(S.golden_x0, 1);
  m = size(S.golden_u, 1);
  p = size(S.golden_y, 1);
  check_size('A', S.A, [n, n, L]);
  check_size('B', S.B, [n, m, L]);
  check_size('C', S.C, [p, n, L + 1]);
  check_size('D', S.D, [p, m, L + 1]);
  check_size('golden_x0', S.golden_x0, [n, 1, 1]);
  check_size('golden_x', S.golden_x, [n, L + 1, 1]);
  check_size('golden_y', S.golden_y, [p, L + 1, 1]);
  largest = max(check_run(S, S, 'arrays'), check_run(from_data(L), S, 'data function'));
  fprintf(['depthsys selfcheck: PASS - system rod, L = %d layers, n = %d states, ' ...
           'm = %d inputs, p = %d outputs; largest relative error %.1e\n'], L, n, m, p, largest);
  fprintf('checked: %s\n', file);
end

function check_current_folder(here)
  current = canonical(pwd());
  own = exist(fullfile(current, 'selfcheck.m'), 'file') == 2 || ...
        exist(fullfile(current, 'rod.mat'), 'file') == 2;
  if own && ~strcmp(current, here)
    error('depthsys:selfcheck', ...
          ['depthsys selfcheck: FAIL - the functions in use must be those of the current ' ...
           'folder, %s, which holds an export of its own; got those of %s. Run "%s" and try ' ...
           'again, or leave that folder.'], current, here, clearing());
  end
end

function folder = canonical(folder)
% without symbolic links; cd in Octave would drop relative folders from its path
  if exist('OCTAVE_VERSION', 'builtin')
    folder = canonicalize_file_name(folder);
  else
    before = cd(folder);
    folder = pwd();
    cd(before);
  end
end

function command = clearing()
  command = 'clear functions';
  if exist('OCTAVE_VERSION', 'builtin')
    command = 'clear -f selfcheck rod_*';
  end
end

function check_size(name, array, wanted)
  got = [size(array, 1), size(array, 2), size(array, 3)];
  if ~isequal(got, wanted) || numel(array) ~= prod(wanted)
    error('depthsys:selfcheck', ...
          ['depthsys selfcheck: FAIL - system rod: %s must be %s; got %s. A reader has ' ...
           'shuffled the axes, or the file was changed; export it again.'], ...
          name, by(wanted), by(size(array)));
  end
end

function text = by(sizes)
  text = sprintf(' x %d', sizes);
  text = text(4:end);
end

function T = from_data(L)
% the data function is asked as ltvss would: k = 0, 1, ..., L
  for k = 0:L
    [A, B, C, D] = rod_data(k);
    if k < L
      T.A(:, :, k + 1) = A;
      T.B(:, :, k + 1) = B;
    end
    T.C(:, :, k + 1) = C;
    T.D(:, :, k + 1) = D;
  end
end

function largest = check_run(T, S, by_what)
  [largest, name, depth] = worst(T, S);
  if largest <= 1e-9
    return
  end
  hint = 'It was changed after its export, or its axes were shuffled';
  turned = T;
  turned.A = permute(T.A, [2, 1, 3]);
  if worst(turned, S) <= 1e-9
    hint = 'It does with every A transposed: a reader has reversed the axes';
  end
  error('depthsys:selfcheck', ...
        ['depthsys selfcheck: FAIL - system rod does not replay its golden trajectory ' ...
         'by the %s: relative error %.1e in %s at depth %d (allowed 1e-09). %s; export it ' ...
         'again.'], by_what, largest, name, depth, hint);
end

function [found, name, depth] = worst(T, S)
% the error at the first depth where it is too large, or the largest
  L = size(S.golden_u, 2);
  x = S.golden_x;
  u = S.golden_u;
  errors = zeros(2, L + 1);  % of x and y
  errors(1, 1) = relative(S.golden_x0, abs(S.golden_x0), x(:, 1));
  for k = 1:L
    errors(1, k + 1) = deviation(T.A(:, :, k), x(:, k), T.B(:, :, k), u(:, k), x(:, k + 1));
    errors(2, k) = deviation(T.C(:, :, k), x(:, k), T.D(:, :, k), u(:, k), S.golden_y(:, k));
  end
  errors(2, L + 1) = deviation(T.C(:, :, L + 1), x(:, L + 1), 0, 0, S.golden_y(:, L + 1));
  at = find(errors > 1e-9, 1);  % column by column: x before y, depth by depth
  if isempty(at)
    [~, at] = max(errors(:));
  end
  [row, column] = ind2sub(size(errors), at);
  found = errors(at);
  names = 'xy';
  name = names(row);
  depth = column - 1;
end

function largest = deviation(A, x, B, u, wanted)
  largest = relative(A * x + B * u, abs(A) * abs(x) + abs(B) * abs(u), wanted);
end

function largest = relative(got, scale, wanted)
% the largest of all elements; 0 / 0 counts 0, over an infinite size or no number Inf
  difference = abs(got - wanted);
  scale(isinf(scale)) = 0;
  used = scale > 0;
  scale(used) = max(scale(used), realmin);
  errors = difference ./ scale;
  errors(isnan(errors)) = Inf;
  errors(difference == 0 & scale == 0) = 0;
  largest = max(errors);
end
