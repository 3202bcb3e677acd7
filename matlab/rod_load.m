function [sys, S] = rod_load()
%rod_LOAD  The system as ss models of its layers, and as arrays.
%   [sys, S] = rod_load() returns S, see rod_arrays, and sys, one discrete-time
%   model ss(A[l], B[l], C[l], D[l], 1) per layer l = 0..L-1: in MATLAB an L x 1 array of models,
%   sys(:,:,l+1); in Octave, whose ss holds one model only, a 1 x L cell array, sys{l+1}.
%
%   No layer follows the last depth, so C[L], which reads the final state, is in S.C only.
%   MATLAB needs its Control System Toolbox, Octave its control package.
  S = rod_arrays();
  L = size(S.C, 3) - 1;
  octave = exist('OCTAVE_VERSION', 'builtin') ~= 0;
  if exist('ss') == 0
    if octave
      error('depthsys:control', ...
            ['rod_load needs the control package; it is not loaded. Run ' ...
             '"pkg load control" first (rod_arrays works without).']);
    end
    error('depthsys:control', ...
          ['rod_load needs the Control System Toolbox; it is not installed. ' ...
           'Use rod_arrays, which works without.']);
  end
  if isfield(S, 'state_name')
    states = S.state_name;
  else
    states = arrayfun(@(i) sprintf('x%d', i), (1:size(S.B, 1)).', 'UniformOutput', false);
  end
  if octave
    sys = cell(1, L);
    for l = 1:L
      layer = ss(S.A(:, :, l), S.B(:, :, l), S.C(:, :, l), S.D(:, :, l), 1);
      sys{l} = set(layer, 'inname', S.input_name, 'outname', S.output_name, 'stname', states);
    end
  else
    sys = ss(S.A, S.B, S.C(:, :, 1:L), S.D(:, :, 1:L), 1);
    sys.InputName = S.input_name;
    sys.OutputName = S.output_name;
    sys.StateName = states;
  end
end
