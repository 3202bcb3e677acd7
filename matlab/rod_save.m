function rod_save(file, A, B, C, D, V, W)
%rod_SAVE  Save a changed or reduced system for depthsys.
%   rod_save('../reduced.mat', A, B, C, D) with A (r,r,L), B (r,m,L), C (p,r,L+1) and D
%   (p,m,L+1); r may differ from n, while L, m and p stay. Without D, or with [], it is zero.
%   Save it outside this folder: a second .mat in here would make the export ambiguous.
%
%   rod_save(file, A, B, C, D, V, W) also saves bases (feature,r,L+1): V leads from the
%   new state to the state of the model, W back.
%
%   Provenance, labels and what does not depend on the state are carried over from
%   rod.mat; what has a dim of the old state is left out. A new golden trajectory is
%   stored. It is read by depthsys.export.from_matlab('reduced.mat') in Python, or in a shell by
%
%     depthsys import reduced.mat --original system.nc --out reduced.nc
%
%   where system.nc is the system that was exported.
  S = rod_arrays();
  L = size(S.golden_u, 2);
  m = size(S.golden_u, 1);
  p = size(S.golden_y, 1);
  r = size(A, 1);
  if nargin < 5 || isempty(D)
    D = zeros(p, m, L + 1);
  end
  if nargin == 6
    error('depthsys:save', 'V and W must be given together; got V only. Give both.');
  end
  check_array('A', A, [r, r, L]);
  check_array('B', B, [r, m, L]);
  check_array('C', C, [p, r, L + 1]);
  check_array('D', D, [p, m, L + 1]);
  if any(any(D(:, :, L + 1)))
    error('depthsys:save', 'D must be zero at the last depth: there is no input. Set it to zero.');
  end
  stale = S.state_variables;
  for i = 1:numel(stale)
    if isfield(S, stale{i})
      S = rmfield(S, stale{i});
    end
  end
  S.A = A;
  S.B = B;
  S.C = C;
  S.D = D;
  S.order = r * ones(1, L + 1);
  if nargin > 6
    check_array('V', V, [size(V, 1), r, L + 1]);
    check_array('W', W, [size(V, 1), r, L + 1]);
    S.V = V;
    S.W = W;
  end
  S.golden_x0 = sin(0.3 + 1.7 * (1:r).');
  [S.golden_x, S.golden_y] = rod_simulate(S.golden_x0, S.golden_u, S);
  if ~all(isfinite([S.golden_x(:); S.golden_y(:)]))
    error('depthsys:save', 'The system must stay finite over its layers; a run of it overflows.');
  end
  S.changed_by = [program(), ', ', datestr(now, 'yyyy-mm-dd HH:MM:SS')];
  write(with_mat(file), encoded(S));
end

function check_array(name, array, wanted)
  got = [size(array, 1), size(array, 2), size(array, 3)];
  if ~isequal(got, wanted) || numel(array) ~= prod(wanted)
    error('depthsys:save', '%s must be %s; got %s. L, m and p stay those of rod.', ...
          name, by(wanted), by(size(array)));
  end
  if ~isnumeric(array) || ~isreal(array) || ~all(isfinite(array(:)))
    error('depthsys:save', '%s must hold real, finite numbers. Look for nan, inf or i.', name);
  end
end

function text = by(sizes)
  text = sprintf(' x %d', sizes);
  text = text(4:end);
end

function S = encoded(S)
% texts as rod.mat holds them: lines in one char row
  names = [S.text_variables; {'text_variables'; 'state_variables'}];
  for i = 1:numel(names)
    if isfield(S, names{i})
      S.(names{i}) = strjoin(S.(names{i})(:).', char(10));
    end
  end
end

function file = with_mat(file)
  [~, base, extension] = fileparts(file);
  if isempty(extension)
    file = [file, '.mat'];
  end
  if strcmp(base, 'rod')
    error('depthsys:save', 'Choose another name than rod.mat, which is the export.');
  end
end

function text = program()
  if exist('OCTAVE_VERSION', 'builtin')
    text = ['GNU Octave ', version()];
  else
    text = ['MATLAB ', version()];
  end
end

function write(file, S)
  large = any(structfun(@(array) 8 * numel(array), S) >= 2 ^ 31);
  % first, so that a file that is cut short lacks arrays that "about" names
  first = {'about'; 'text_variables'; 'state_variables'; 'changed_by'};
  others = setdiff(fieldnames(S), first);
  if exist('OCTAVE_VERSION', 'builtin')
    if large
      error('depthsys:save', 'Octave writes variables below 2 GB only. Save a smaller system.');
    end
    save('-v7', file, '-struct', 'S', first{:}, others{:});
  else
    version_written = '-v7';
    if large
      version_written = '-v7.3';
    end
    save(file, '-struct', 'S', first{:}, version_written);
    save(file, '-struct', 'S', others{:}, '-append');
  end
end
