// Attention of rows that lie end to end in one pass, each over keys and values of its own that were known before.
//
// One (row, key head) at a time: its keys and values are widened to float32 once, then each query of the heads that
// share them goes over them. Called by row_attention.py, which says what the fields of Call are.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

namespace {

constexpr int LANES = 16;
constexpr int ALIGNMENT = 64;
constexpr int MOST_QUERIES = 4;
typedef float Lanes __attribute__((vector_size(ALIGNMENT)));
typedef int32_t Whole __attribute__((vector_size(ALIGNMENT)));
using BFloat16 = uint16_t;

struct Call {
  int64_t rows, heads, key_heads, width, window;
  float scale;
  const void *query, *key, *value;
  void *output;
  int64_t query_token, query_head, key_token, key_head, value_token, value_head;
  const int64_t *table;
};

struct Row {
  const void *keys, *values;
  int64_t key_head, value_head, known, start, stop;
};

inline float widened(float value) { return value; }

inline float widened(BFloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value) << 16;
  float found;
  std::memcpy(&found, &bits, sizeof found);
  return found;
}

inline void narrow(float value, float &to) { to = value; }

// To the nearest, ties to even; a NaN stays one.
inline void narrow(float value, BFloat16 &to) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  to = static_cast<BFloat16>((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}

// e^x of x <= 0: 2 to a whole power, times a Taylor polynomial on [-0.35, 0.35]. Below e^-87 nothing is told apart.
inline Lanes exponential(Lanes x) {
  const Lanes scaled = (x < -87.0f ? Lanes{} - 87.0f : x) * 1.44269504f;
  const Whole whole = __builtin_convertvector(scaled - 0.5f, Whole);
  const Lanes part = (scaled - __builtin_convertvector(whole, Lanes)) * 0.69314718f;
  Lanes power = part * (1.0f / 720) + 1.0f / 120;
  power = part * power + 1.0f / 24;
  power = part * power + 1.0f / 6;
  power = part * power + 0.5f;
  power = part * power + 1.0f;
  power = part * power + 1.0f;
  return power * reinterpret_cast<Lanes>((whole + 127) << 23);
}

inline float sum_of(Lanes lanes) {
  float found = 0;
  for (int at = 0; at < LANES; at++) found += lanes[at];
  return found;
}

// Scores of the positions [begin, end) to weights e^(score - highest), and their sum. Lanes beside them become 0.
inline float soften(float *weights, int64_t begin, int64_t end) {
  const int64_t first = begin / LANES * LANES, last = (end + LANES - 1) / LANES * LANES;
  std::fill(weights + first, weights + begin, -std::numeric_limits<float>::infinity());
  std::fill(weights + end, weights + last, -std::numeric_limits<float>::infinity());
  const float highest = *std::max_element(weights + begin, weights + end);
  Lanes total{};
  for (int64_t at = first; at < last; at += LANES) {
    Lanes &lanes = *reinterpret_cast<Lanes *>(weights + at);
    lanes = exponential(lanes - highest);
    total += lanes;
  }
  return sum_of(total);
}

// Q queries over the positions [begin, end). queries, found: [Q, W]; keys, values: [positions, W]; weights: [Q, room].
template <int Q, int W>
void attend_block(const Lanes *queries, const Lanes *keys, const Lanes *values, int64_t begin, int64_t end, float *weights,
                  int64_t room, Lanes *found) {
  for (int64_t at = begin; at < end; at++) {
    Lanes scores[Q] = {};
#pragma GCC unroll 16
    for (int w = 0; w < W; w++)
      for (int q = 0; q < Q; q++) scores[q] += queries[q * W + w] * keys[at * W + w];
    for (int q = 0; q < Q; q++) weights[q * room + at] = sum_of(scores[q]);
  }
  float totals[Q];
  for (int q = 0; q < Q; q++) totals[q] = soften(weights + q * room, begin, end);
  Lanes sums[Q][W] = {};
  for (int64_t at = begin; at < end; at++)
    for (int q = 0; q < Q; q++) {
      const float weight = weights[q * room + at];
#pragma GCC unroll 16
      for (int w = 0; w < W; w++) sums[q][w] += weight * values[at * W + w];
    }
  for (int q = 0; q < Q; q++)
    for (int w = 0; w < W; w++) found[q * W + w] = sums[q][w] / totals[q];
}

template <int W>
void attend_block_of(int64_t count, const Lanes *queries, const Lanes *keys, const Lanes *values, int64_t begin, int64_t end,
                     float *weights, int64_t room, Lanes *found) {
  switch (count) {
    case 1: return attend_block<1, W>(queries, keys, values, begin, end, weights, room, found);
    case 2: return attend_block<2, W>(queries, keys, values, begin, end, weights, room, found);
    case 3: return attend_block<3, W>(queries, keys, values, begin, end, weights, room, found);
    default: return attend_block<MOST_QUERIES, W>(queries, keys, values, begin, end, weights, room, found);
  }
}

// `count` vectors of `width` numbers, `step` apart, to float32 and to W lanes each; lanes beyond the width stay.
template <int W, class T>
inline void widen(const T *from, int64_t count, int64_t step, int64_t width, float *to) {
  for (int64_t at = 0; at < count; at++)
    for (int64_t d = 0; d < width; d++) to[at * W * LANES + d] = widened(from[at * step + d]);
}

template <class T, int W>
void attend_row(const Call &call, const Row &row, int64_t head) {
  constexpr int64_t wide = W * LANES;
  const int64_t fresh = row.stop - row.start, length = row.known + fresh, group = call.heads / call.key_heads;
  const int64_t room = (length + LANES - 1) / LANES * LANES;
  thread_local std::vector<float> memory;
  memory.resize(2 * length * wide + 2 * MOST_QUERIES * wide + MOST_QUERIES * room + LANES);
  if (call.width < wide) std::fill(memory.begin(), memory.end(), 0.0f);
  void *start = memory.data();
  size_t bytes = memory.size() * sizeof(float);
  float *keys = static_cast<float *>(std::align(ALIGNMENT, 1, start, bytes));
  float *values = keys + length * wide, *queries = values + length * wide;
  float *found = queries + MOST_QUERIES * wide, *weights = found + MOST_QUERIES * wide;

  const T *key = static_cast<const T *>(call.key) + row.start * call.key_token + head * call.key_head;
  const T *value = static_cast<const T *>(call.value) + row.start * call.value_token + head * call.value_head;
  widen<W>(static_cast<const T *>(row.keys) + head * row.key_head, row.known, call.width, call.width, keys);
  widen<W>(static_cast<const T *>(row.values) + head * row.value_head, row.known, call.width, call.width, values);
  widen<W>(key, fresh, call.key_token, call.width, keys + row.known * wide);
  widen<W>(value, fresh, call.value_token, call.width, values + row.known * wide);

  for (int64_t token = row.start; token < row.stop; token++) {
    const int64_t end = row.known + token - row.start + 1;
    const int64_t begin = call.window > 0 ? std::max<int64_t>(0, end - call.window) : 0;
    for (int64_t first = head * group; first < (head + 1) * group; first += MOST_QUERIES) {
      const int64_t count = std::min<int64_t>(MOST_QUERIES, (head + 1) * group - first);
      const T *query = static_cast<const T *>(call.query) + token * call.query_token + first * call.query_head;
      widen<W>(query, count, call.query_head, call.width, queries);
      for (int64_t at = 0; at < count * wide; at++) queries[at] *= call.scale;
      attend_block_of<W>(count, reinterpret_cast<Lanes *>(queries), reinterpret_cast<Lanes *>(keys),
                         reinterpret_cast<Lanes *>(values), begin, end, weights, room, reinterpret_cast<Lanes *>(found));
      T *output = static_cast<T *>(call.output) + (token * call.heads + first) * call.width;
      for (int64_t q = 0; q < count; q++)
        for (int64_t d = 0; d < call.width; d++) narrow(found[q * wide + d], output[q * call.width + d]);
    }
  }
}

template <class T, int W>
void attend_rows(const Call &call) {
  const int64_t tasks = call.rows * call.key_heads;
#pragma omp parallel for schedule(dynamic) if (tasks > 1)
  for (int64_t task = 0; task < tasks; task++) {
    const int64_t at = task / call.key_heads;
    const auto column = [&](int of) { return call.table[of * call.rows + at]; };
    const Row row{reinterpret_cast<const void *>(column(0)), reinterpret_cast<const void *>(column(1)),
                  column(2), column(3), column(4), column(5), column(6)};
    attend_row<T, W>(call, row, task % call.key_heads);
  }
}

template <class T>
void attend(const Call &call) {
  if (call.width <= 32) return attend_rows<T, 2>(call);
  if (call.width <= 64) return attend_rows<T, 4>(call);
  if (call.width <= 128) return attend_rows<T, 8>(call);
  attend_rows<T, 16>(call);
}

}  // namespace

extern "C" void attend_float32(const Call *call) { attend<float>(*call); }
extern "C" void attend_bfloat16(const Call *call) { attend<BFloat16>(*call); }
