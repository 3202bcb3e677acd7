function [A, B, C, D, E, dx0, x0, u0, y0, Delays] = rod_data(k, varargin)
%rod_DATA  The matrices at step k, in the form that ltvss wants.
%   sys = ltvss(@rod_data, 1) is the system as a discrete-time LTV model (MATLAB R2023a).
%
%   k counts from 0. It is rounded and clamped: A and B belong to a layer, 0..L-1, C and D to a
%   depth, 0..L. There is no offset, no delay and no descriptor matrix: these outputs are [].
  S = rod_arrays();
  L = size(S.C, 3) - 1;
  k = max(round(double(k)), 0);
  layer = min(k, L - 1) + 1;
  depth = min(k, L) + 1;
  A = S.A(:, :, layer);
  B = S.B(:, :, layer);
  C = S.C(:, :, depth);
  D = S.D(:, :, depth);
  E = [];
  dx0 = [];
  x0 = [];
  u0 = [];
  y0 = [];
  Delays = [];
end
