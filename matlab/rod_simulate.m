function [x, y] = rod_simulate(x0, u, S)
%rod_SIMULATE  Run the recursion.
%   [x, y] = rod_simulate(x0, u) starts at x0 (n,1) and applies u (m,L), column l+1 at
%   layer l. It returns the states x (n,L+1) and the outputs y (p,L+1) of depths 0..L.
%
%   [x, y] = rod_simulate(x0, u, S) runs another system: a struct with A, B, C and D.
  if nargin < 3
    S = rod_arrays();
  end
  n = size(S.B, 1);
  m = size(S.B, 2);
  L = size(S.C, 3) - 1;
  if ~isequal(size(x0), [n, 1])
    error('depthsys:simulate', 'x0 must be %d x 1; got %d x %d.', n, size(x0, 1), size(x0, 2));
  end
  if ~isequal(size(u), [m, L])
    error('depthsys:simulate', ...
          'u must be %d x %d, one column per layer; got %d x %d.', m, L, size(u, 1), size(u, 2));
  end
  x = zeros(n, L + 1);
  y = zeros(size(S.C, 1), L + 1);
  x(:, 1) = x0;
  for l = 1:L
    y(:, l) = S.C(:, :, l) * x(:, l) + S.D(:, :, l) * u(:, l);
    x(:, l + 1) = S.A(:, :, l) * x(:, l) + S.B(:, :, l) * u(:, l);
  end
  y(:, L + 1) = S.C(:, :, L + 1) * x(:, L + 1);
end
