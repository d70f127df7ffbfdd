// Who computes what, when. Many rows: tasks (layer, block of rows) in that order, handed out by a counter; a task waits
// for the keys and values of the blocks before it in its sequence, nothing else, so that no thread waits for a layer's
// end. Few rows: all threads share each linear layer's panels, with a barrier after each stage.
#pragma once

#include "decoder/block_impl.h"

namespace marquee::decoder {
namespace {

inline Range keys_and_values(const Step& step) {  // panels of project_in that hold any of them
  return {step.D / kPanel, num_panels(3 * step.D)};
}
inline Range queries_only(const Step& step) { return {0, num_panels(step.D)}; }

// Attention and feed-forward of rows [begin, end), whose queries are written.
inline void finish_layer(const Step& step, const Layer& layer, const Rows& rows, int64_t begin, int64_t end,
                         const Scratch& scratch) {
  const int64_t count = end - begin;
  float* x = rows.x + begin * step.D;
  const Activations normed = scratch.activations(scratch.normed, scratch.stride, count);
  by_sequence(rows, step.B, begin, end, [&](int64_t b, int64_t first, int64_t last) {
    for (int64_t head = 0; head < step.H; ++head) {
      attend_head(step, layer, rows, b, first, last, head, scratch.softmax,
                  scratch.normed + (first - begin) * scratch.stride, scratch.stride);
    }
  });
  add_linear(normed, layer.project_out, all_panels(layer.project_out), nullptr, scratch.hidden, scratch.hidden_stride, x,
             step.D);
  norm_rows(step, layer.norm2_weight, layer.norm2_bias, x, count, scratch);
  feed_forward(normed, layer, x, step.D, scratch);
}

// Queries, keys and values of rows [begin, end): what `panels` of project_in yield.
inline void start_layer(const Step& step, const Layer& layer, const Rows& rows, int64_t begin, int64_t end, Range panels,
                        bool with_queries, bool with_keys, const Scratch& scratch) {
  norm_rows(step, layer.norm1_weight, layer.norm1_bias, rows.x + begin * step.D, end - begin, scratch);
  linear(scratch.activations(scratch.normed, scratch.stride, end - begin), layer.project_in, panels, scratch.hidden,
         scratch.hidden_stride);
  by_sequence(rows, step.B, begin, end, [&](int64_t b, int64_t first, int64_t last) {
    const float* projected = scratch.hidden + (first - begin) * scratch.hidden_stride;
    if (with_queries) {
      write_queries(step, rows, b, first, last, {0, step.H}, projected, scratch.hidden_stride);
    }
    if (with_keys) {
      write_keys_values(step, layer, b, first, last, {0, step.H}, projected, scratch.hidden_stride);
    }
  });
}

inline void norm_out(const Step& step, float* x, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    layer_norm(x + row * step.D, step.D, step.final_weight, step.final_bias, kNormEpsilon, x + row * step.D);
  }
}

inline void wait_for_keys(const Step& step, int64_t block, int32_t layers) {
  by_sequence(step.all, step.B, block * step.block_rows, block * step.block_rows + 1, [&](int64_t b, int64_t, int64_t) {
    for (int64_t before = step.offsets[b] / step.block_rows; before <= block; ++before) {
      wait_for(step.done + before, layers);
    }
  });
}

// Task (l, block): what is left of layer l - 1, then layer l's keys and values (after the last layer: the final norm).
inline void run_block(const Step& step, int64_t l, int64_t block, const Scratch& scratch) {
  const int64_t begin = block * step.block_rows, L = step.num_layers;
  const int64_t end = begin + step.block_rows < step.all.count ? begin + step.block_rows : step.all.count;
  if (l > 0) {
    wait_for_keys(step, block, int32_t(l));
    finish_layer(step, step.layers[l - 1], step.all, begin, end, scratch);
  }
  if (l == L) {
    norm_out(step, step.all.x, begin, end);
    return;
  }
  const Layer& layer = step.layers[l];
  const bool is_pruned = step.last_only && l == L - 1;
  start_layer(step, layer, step.all, begin, end, is_pruned ? keys_and_values(step) : all_panels(layer.project_in),
              !is_pruned, true, scratch);
  __atomic_store_n(step.done + block, int32_t(l + 1), __ATOMIC_RELEASE);
}

inline void run_blocks(const Step& step, const Scratch& scratch) {
  const int64_t num_tasks = (step.num_layers + !step.last_only) * step.num_blocks;
  for (int64_t task; (task = __atomic_fetch_add(step.counters, 1, __ATOMIC_RELAXED)) < num_tasks;) {
    run_block(step, task / step.num_blocks, task % step.num_blocks, scratch);
  }
}

// One layer for few rows, by all threads. Everyone has reached the same state of x before.
inline void few_rows(const Step& step, const Layer& layer, const Rows& rows, Range projections, bool with_queries,
                     bool with_keys, int64_t thread, int64_t num_threads, const Scratch& scratch) {
  const int64_t stride = scratch.hidden_stride;
  const auto part = [&](Range panels) { return share(panels, thread, num_threads); };
  const Activations normed = scratch.activations(scratch.normed, scratch.stride, rows.count);
  const Activations attended = scratch.activations(step.shared.attended, scratch.stride, rows.count);
  const Activations hidden = scratch.activations(step.shared.hidden, stride, rows.count);
  norm_rows(step, layer.norm1_weight, layer.norm1_bias, rows.x, rows.count, scratch);
  linear(normed, layer.project_in, part(projections), step.shared.hidden, stride);
  barrier();
  by_sequence(rows, step.B, 0, rows.count, [&](int64_t b, int64_t first, int64_t last) {
    const float* projected = step.shared.hidden + first * stride;
    for (int64_t head = 0; head < step.H; ++head) {
      if ((b * step.H + head) % num_threads != thread) {
        continue;
      }
      if (with_keys) {
        write_keys_values(step, layer, b, first, last, {head, head + 1}, projected, stride);
      }
      if (with_queries) {
        write_queries(step, rows, b, first, last, {head, head + 1}, projected, stride);
        attend_head(step, layer, rows, b, first, last, head, scratch.softmax,
                    step.shared.attended + first * scratch.stride, scratch.stride);
      }
    }
  });
  barrier();
  if (!with_queries) {
    return;
  }
  const Range own = part(all_panels(layer.project_out));
  add_linear(attended, layer.project_out, own, nullptr, scratch.normed, scratch.stride, rows.x, step.D);
  barrier();
  norm_rows(step, layer.norm2_weight, layer.norm2_bias, rows.x, rows.count, scratch);
  feed_in(normed, layer, part(all_panels(layer.feed_in)), step.shared.hidden, stride);
  barrier();
  add_linear(hidden, layer.feed_out, own, layer.feed_out_bias, scratch.normed, scratch.stride, rows.x, step.D);
  barrier();
}

inline void copy_last_rows(const Step& step) {
  for (int64_t b = 0; b < step.B; ++b) {
    const float* from = step.all.x + (step.offsets[b + 1] - 1) * step.D;
    for (int64_t i = 0; i < step.D; ++i) {
      step.last.x[b * step.D + i] = from[i];
    }
  }
}

// The last layer at each sequence's last token; all keys and values are written.
inline void run_last(const Step& step, int64_t thread, int64_t num_threads, const Scratch& scratch) {
  const Layer& layer = step.layers[step.num_layers - 1];
  if (step.last.count <= kFewRows) {
    few_rows(step, layer, step.last, queries_only(step), true, false, thread, num_threads, scratch);
    if (thread == 0) {
      norm_out(step, step.last.x, 0, step.last.count);
    }
    return;
  }
  const int64_t size = step.block_rows;
  for (int64_t begin; (begin = __atomic_fetch_add(step.counters + 1, size, __ATOMIC_RELAXED)) < step.last.count;) {
    const int64_t end = begin + size < step.last.count ? begin + size : step.last.count;
    start_layer(step, layer, step.last, begin, end, queries_only(step), true, false, scratch);
    finish_layer(step, layer, step.last, begin, end, scratch);
    norm_out(step, step.last.x, begin, end);
  }
}

inline void run(const Step& step, int64_t thread, int64_t num_threads) {
  const bool is_few = step.all.count <= kFewRows;
  const Scratch scratch = scratch_of(step, thread);
  if (is_few) {
    const int64_t num_whole = step.num_layers - step.last_only;
    for (int64_t l = 0; l < num_whole; ++l) {
      few_rows(step, step.layers[l], step.all, all_panels(step.layers[l].project_in), true, true, thread, num_threads,
               scratch);
    }
    if (step.last_only) {
      few_rows(step, step.layers[num_whole], step.all, keys_and_values(step), false, true, thread, num_threads, scratch);
    } else if (thread == 0) {
      norm_out(step, step.all.x, 0, step.all.count);
    }
  } else {
    run_blocks(step, scratch);
  }
  if (step.last_only) {
    barrier();
    if (thread == 0) {
      copy_last_rows(step);
    }
    barrier();
    run_last(step, thread, num_threads, scratch);
  }
}

}  // namespace
}  // namespace marquee::decoder
