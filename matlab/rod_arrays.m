function [S, file] = rod_arrays(how)
%rod_ARRAYS  The arrays of the system, as a struct.
%   S = rod_arrays() reads rod.mat, which lies beside this file: once, and again
%   when its size or date has changed. rod_arrays('reload') reads it in any case, and
%   [S, file] = rod_arrays() also tells its path. Layer or depth come last:
%
%     x[l+1] = A[l] x[l] + B[l] u[l]    S.A (n,n,L), S.B (n,m,L)        A[l] is S.A(:,:,l+1)
%     y[k]   = C[k] x[k] + D[k] u[k]    S.C (p,n,L+1), S.D (p,m,L+1)    C[k] is S.C(:,:,k+1)
%
%   Labels are cellstr columns. S.about is a JSON text with dims, units and provenance.
%   MATLAB and Octave drop trailing dims of size 1: with one layer S.A is n x n.
  persistent stored version_read
  if nargin > 0 && ~isequal(how, 'reload')
    error('depthsys:arrays', 'The argument must be ''reload'', or none. Leave it out.');
  end
  file = fullfile(fileparts(mfilename('fullpath')), 'rod.mat');
  version_now = version_of(file);
  if nargin > 0 || ~isequal(version_read, version_now)
    version_read = [];  % should the file not load, what was read before is not taken for it
    stored = decoded(load(file));
    version_read = version_now;
  end
  S = stored;
end

function version_now = version_of(file)
% dates have whole seconds, so that a quick change may go unseen; NaN equals nothing
  found = dir(file);
  version_now = NaN;
  if numel(found) == 1
    version_now = {file, found.bytes, found.datenum};
  end
end

function S = decoded(S)
  names = lines_of(S.text_variables);
  for i = 1:numel(names)
    S.(names{i}) = lines_of(S.(names{i}));
  end
  S.text_variables = names;
  S.state_variables = lines_of(S.state_variables);
  S.about = text_of(S.about);
end

function lines = lines_of(text)
  lines = strsplit(text_of(text), char(10), 'CollapseDelimiters', false);
  lines = lines(:);
end

function text = text_of(text)
% Octave reads the characters of a v7.3 file as numbers, and an empty text as its size, 0 0.
  text = double(text(:).');
  text = char(text(text > 0));
end
