% What a control engineer does with an exported system, in GNU Octave: check it, look at it,
% truncate it by balancing, send it back. Run by octave_round_trip.py in the exported folder.
%
%   octave_round_trip(order, figure_file)   figure_file '' for none
function octave_round_trip(order, figure_file)
  selfcheck
  S = depth_system_arrays();
  [V, W, values] = balancing(S, order);
  [A, B, C] = truncated(S, V, W);
  depth_system_save('../reduced.mat', A, B, C, S.D);

  full = gains(S.A, S.B, S.C);
  small = gains(A, B, C);
  printf('Hankel singular values at depth %d:%s\n', middle(S), sprintf(' %.4g', values{middle(S) + 1}));
  printf('gain of every layer, full:    %s\n', sprintf(' %7.4f', full));
  printf('gain of every layer, order %d: %s\n', order, sprintf(' %7.4f', small));
  if ~isempty(figure_file)
    drawn(values, full, small, order, figure_file);
  end
end

function [V, W, values] = balancing(S, order)
% square-root balancing: P_k = R_k R_k', Q_k = S_k' S_k, singular values of S_k R_k
  L = size(S.C, 3) - 1;
  n = size(S.B, 1);
  R = {zeros(n, n)};
  for l = 1:L
    R{l + 1} = triu(qr([S.A(:, :, l) * R{l}, S.B(:, :, l)].', 0)).';
  end
  O = cell(1, L + 1);
  O{L + 1} = S.C(:, :, L + 1);
  for l = L:-1:1
    O{l} = triu(qr([S.C(:, :, l); O{l + 1} * S.A(:, :, l)], 0));
  end
  V = zeros(n, order, L + 1);
  W = V;
  for k = 1:L + 1
    [U, sigma, Z] = svd(O{k} * R{k}, 'econ');
    values{k} = diag(sigma);
    kept = 1:min(order, sum(values{k} > 1e-10 * max([values{k}; realmin])));
    if values{k}(1) > 0
      scale = diag(values{k}(kept) .^ -0.5);
      V(:, kept, k) = R{k} * Z(:, kept) * scale;
      W(:, kept, k) = O{k}.' * U(:, kept) * scale;
    end
  end
end

function [A, B, C] = truncated(S, V, W)
  for l = 1:size(S.C, 3) - 1
    A(:, :, l) = W(:, :, l + 1).' * S.A(:, :, l) * V(:, :, l);
    B(:, :, l) = W(:, :, l + 1).' * S.B(:, :, l);
  end
  for k = 1:size(S.C, 3)
    C(:, :, k) = S.C(:, :, k) * V(:, :, k);
  end
end

function h = gains(A, B, C)
% what a unit push at each layer does to the last output
  L = size(C, 3) - 1;
  row = C(:, :, L + 1);
  for l = L:-1:1
    h(l) = row * B(:, :, l);
    row = row * A(:, :, l);
  end
end

function k = middle(S)
  k = floor((size(S.C, 3) - 1) / 2);
end

function drawn(values, full, small, order, file)
  graphics_toolkit('gnuplot');
  f = figure('visible', 'off', 'position', [0 0 900 360]);
  axes('position', [0.06 0.13 0.41 0.78]);
  hold on
  bar(0:numel(full) - 1, full, 'facecolor', [0.75 0.82 0.9], 'edgecolor', [0.3 0.3 0.3]);
  plot(0:numel(small) - 1, small, 'ko', 'markersize', 5, 'markerfacecolor', 'k');
  xlabel('layer of the push');
  ylabel('shift of the readout per unit push');
  title('Gain of every layer');
  legend('as exported', sprintf('truncated to order %d in Octave', order), 'location', 'northwest');
  xlim([-0.7, numel(full) - 0.3]);
  box on

  axes('position', [0.57 0.13 0.41 0.78]);
  largest = max(cellfun(@max, values));
  styles = {'ko-', 'ks--', 'k^-.', 'kd:', 'k+-', 'kx--'};
  count = max(cellfun(@(v) sum(v > 1e-6 * largest), values));
  labels = {};
  for i = 1:min(count, numel(styles))
    at = find(cellfun(@(v) numel(v) >= i && v(i) > 1e-6 * largest, values));
    semilogy(at - 1, cellfun(@(v) v(i), values(at)), styles{i}, 'markersize', 5);
    hold on
    labels{i} = sprintf('\\sigma_{%d}', i);
  end
  xlabel('depth');
  ylabel('Hankel singular value');
  title('What passes through each depth');
  legend(labels, 'location', 'southeast');
  xlim([0, numel(values) - 1]);
  print(f, '-dpng', '-r110', file);
end
