// Attention of rows that lie end to end in one pass, each over keys and values of its own that were known before.
//
// One (row, key head) at a time: its keys and values are widened to float32 once, then each query of the heads that
// share them goes over them. Called by row_attention.py, which says what the fields of Call are.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <utility>
#include <vector>

namespace {

constexpr int LANES = 16;
constexpr int ALIGNMENT = 64;
constexpr int MOST_QUERIES = 4;
typedef float Lanes __attribute__((vector_size(ALIGNMENT)));
typedef int32_t Whole __attribute__((vector_size(ALIGNMENT)));
typedef uint16_t Halves __attribute__((vector_size(ALIGNMENT / 2)));
using BFloat16 = uint16_t;

struct Call {
  int64_t threads, rows, heads, key_heads, width, window;
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

// Lane l of vector i and lane i of vector l change places, for bit S of i and l.
template <int S, size_t... L>
inline void exchange(Lanes *tile, std::index_sequence<L...>) {
  for (int at = 0; at < LANES; at++) {
    if (at & S) continue;
    const Lanes low = tile[at], high = tile[at + S];
    tile[at] = __builtin_shufflevector(low, high, ((L & S) ? LANES + L - S : L)...);
    tile[at + S] = __builtin_shufflevector(low, high, ((L & S) ? LANES + L : L + S)...);
  }
}

inline void transpose(Lanes *tile) {
  constexpr std::make_index_sequence<LANES> lanes;
  exchange<1>(tile, lanes);
  exchange<2>(tile, lanes);
  exchange<4>(tile, lanes);
  exchange<8>(tile, lanes);
}

inline Lanes loaded(const float *from) {
  Lanes found;
  std::memcpy(&found, from, sizeof found);
  return found;
}

inline Lanes loaded(const BFloat16 *from) {
  Halves bits;
  std::memcpy(&bits, from, sizeof bits);
  return reinterpret_cast<Lanes>(__builtin_convertvector(bits, Whole) << 16);
}

// `count` numbers, then zeros; LANES at most.
template <class T>
inline Lanes loaded(const T *from, int64_t count) {
  if (count >= LANES) return loaded(from);
  Lanes found{};
  for (int64_t at = 0; at < count; at++) found[at] = widened(from[at]);
  return found;
}

// Keys or values of one row and head: what was known, then the new ones.
template <class T>
struct Positions {
  const T *known, *fresh;
  int64_t known_count, known_step, fresh_step;

  const T *at(int64_t position) const {
    return position < known_count ? known + position * known_step : fresh + (position - known_count) * fresh_step;
  }
};

// Blocks of LANES positions: [blocks, width rounded up to LANES], a vector for each number of the LANES keys.
template <class T>
void lay_keys(const Positions<T> &keys, int64_t length, int64_t width, Lanes *to) {
  for (int64_t first = 0; first < length; first += LANES)
    for (int64_t d = 0; d < width; d += LANES, to += LANES) {
      for (int at = 0; at < LANES; at++) to[at] = first + at < length ? loaded(keys.at(first + at) + d, width - d) : Lanes{};
      transpose(to);
    }
}

// [positions, W]
template <int W, class T>
void lay_values(const Positions<T> &values, int64_t length, int64_t width, Lanes *to) {
  for (int64_t at = 0; at < length; at++)
    for (int w = 0; w < W; w++) to[at * W + w] = loaded(values.at(at) + w * LANES, width - w * LANES);
}

inline float highest_of(const float *from, int64_t count) {
  Lanes most = loaded(from);
  for (int64_t at = LANES; at < count; at += LANES) {
    const Lanes lanes = loaded(from + at);
    most = lanes > most ? lanes : most;
  }
  float found = most[0];
  for (int at = 1; at < LANES; at++) found = std::max(found, most[at]);
  return found;
}

// Scores of positions to weights e^(score - highest), and their sum. Scores are of [first, last), whole blocks; those
// outside of [begin, end) become e^-87.
inline float soften(float *weights, int64_t first, int64_t begin, int64_t end, int64_t last) {
  std::fill(weights + first, weights + begin, -std::numeric_limits<float>::infinity());
  std::fill(weights + end, weights + last, -std::numeric_limits<float>::infinity());
  const float highest = highest_of(weights + first, last - first);
  Lanes total{};
  for (int64_t at = first; at < last; at += LANES) {
    Lanes &lanes = *reinterpret_cast<Lanes *>(weights + at);
    lanes = exponential(lanes - highest);
    total += lanes;
  }
  return sum_of(total);
}

// What a query sees: [begin, end).
struct Seen {
  int64_t begin, end;
};

// Q queries with B blocks of LANES keys each, `step` vectors apart; two at a time keep the processor's adders busy.
template <int Q, int B>
inline void score_blocks(const float *queries, int64_t wide, const Lanes *keys, int64_t step, int64_t width, float *weights,
                         int64_t room) {
  Lanes scores[Q][B] = {};
  for (int64_t d = 0; d < width; d++)
    for (int b = 0; b < B; b++)
      for (int q = 0; q < Q; q++) scores[q][b] += queries[q * wide + d] * keys[b * step + d];
  for (int q = 0; q < Q; q++)
    for (int b = 0; b < B; b++) *reinterpret_cast<Lanes *>(weights + q * room + b * LANES) = scores[q][b];
}

// Q queries, what they see not falling. queries: [Q, W * LANES]; weights: [Q, room]; found: [Q, W].
template <int Q, int W>
void attend_block(const float *queries, const Seen *seen, const Lanes *keys, const Lanes *values, int64_t width,
                  float *weights, int64_t room, Lanes *found) {
  constexpr int64_t wide = W * LANES;
  const int64_t block_vectors = (width + LANES - 1) / LANES * LANES;
  const int64_t begin = seen[0].begin, end = seen[Q - 1].end;
  const int64_t first = begin / LANES * LANES, last = (end + LANES - 1) / LANES * LANES;
  const auto block = [&](int64_t at) { return keys + at / LANES * block_vectors; };
  int64_t at = first;
  for (; at + 2 * LANES <= last; at += 2 * LANES) score_blocks<Q, 2>(queries, wide, block(at), block_vectors, width, weights + at, room);
  if (at < last) score_blocks<Q, 1>(queries, wide, block(at), block_vectors, width, weights + at, room);
  float totals[Q];
  for (int q = 0; q < Q; q++) totals[q] = soften(weights + q * room, first, seen[q].begin, seen[q].end, last);
  Lanes sums[Q][W] = {};
  for (at = begin; at < end; at++)
    for (int q = 0; q < Q; q++) {
      const float weight = weights[q * room + at];
#pragma GCC unroll 16
      for (int w = 0; w < W; w++) sums[q][w] += weight * values[at * W + w];
    }
  for (int q = 0; q < Q; q++)
    for (int w = 0; w < W; w++) found[q * W + w] = sums[q][w] / totals[q];
}

template <class T, int W>
void attend_row(const Call &call, const Row &row, int64_t head) {
  constexpr int64_t wide = W * LANES;
  const int64_t fresh = row.stop - row.start, length = row.known + fresh, group = call.heads / call.key_heads;
  const int64_t room = (length + LANES - 1) / LANES * LANES;
  thread_local std::vector<float> memory;
  const size_t needed = room * wide + length * wide + MOST_QUERIES * (2 * wide + room) + LANES;
  if (memory.size() < needed) memory.resize(needed);
  void *start = memory.data();
  size_t bytes = memory.size() * sizeof(float);
  float *keys = static_cast<float *>(std::align(ALIGNMENT, 1, start, bytes));
  float *values = keys + room * wide, *queries = values + length * wide;
  float *found = queries + MOST_QUERIES * wide, *weights = found + MOST_QUERIES * wide;
  const auto vectors = [](float *from) { return reinterpret_cast<Lanes *>(from); };

  const Positions<T> all_keys{static_cast<const T *>(row.keys) + head * row.key_head,
                              static_cast<const T *>(call.key) + row.start * call.key_token + head * call.key_head,
                              row.known, call.width, call.key_token};
  const Positions<T> all_values{static_cast<const T *>(row.values) + head * row.value_head,
                                static_cast<const T *>(call.value) + row.start * call.value_token + head * call.value_head,
                                row.known, call.width, call.value_token};
  lay_keys(all_keys, length, call.width, vectors(keys));
  lay_values<W>(all_values, length, call.width, vectors(values));

  const auto *query = static_cast<const T *>(call.query) + row.start * call.query_token + head * group * call.query_head;
  auto *output = static_cast<T *>(call.output) + (row.start * call.heads + head * group) * call.width;
  for (int64_t first = 0; first < fresh * group; first += MOST_QUERIES) {
    const int64_t count = std::min<int64_t>(MOST_QUERIES, fresh * group - first);
    Seen seen[MOST_QUERIES];
    for (int64_t q = 0; q < count; q++) {
      const int64_t token = (first + q) / group, end = row.known + token + 1;
      seen[q] = {call.window > 0 ? std::max<int64_t>(0, end - call.window) : 0, end};
      const T *from = query + token * call.query_token + (first + q) % group * call.query_head;
      for (int64_t d = 0; d < call.width; d++) queries[q * wide + d] = widened(from[d]) * call.scale;
    }
    const auto attend_them = [&](auto attend) {
      attend(queries, seen, vectors(keys), vectors(values), call.width, weights, room, vectors(found));
    };
    if (count == 1) attend_them(attend_block<1, W>);
    if (count == 2) attend_them(attend_block<2, W>);
    if (count == 3) attend_them(attend_block<3, W>);
    if (count == MOST_QUERIES) attend_them(attend_block<MOST_QUERIES, W>);
    for (int64_t q = 0; q < count; q++) {
      T *to = output + ((first + q) / group * call.heads + (first + q) % group) * call.width;
      for (int64_t d = 0; d < call.width; d++) narrow(found[q * wide + d], to[d]);
    }
  }
}

// Whether there was memory for it.
template <class T, int W>
bool attend_rows(const Call &call) {
  const int64_t tasks = call.rows * call.key_heads;
  std::atomic<bool> is_done{true};
#pragma omp parallel for schedule(dynamic) num_threads(call.threads) if (tasks > 1 && call.threads > 1)
  for (int64_t task = 0; task < tasks; task++) {
    const int64_t at = task / call.key_heads;
    const auto column = [&](int of) { return call.table[of * call.rows + at]; };
    const Row row{reinterpret_cast<const void *>(column(0)), reinterpret_cast<const void *>(column(1)),
                  column(2), column(3), column(4), column(5), column(6)};
    try {
      attend_row<T, W>(call, row, task % call.key_heads);
    } catch (const std::bad_alloc &) {  // it must not leave the loop's thread
      is_done = false;
    }
  }
  return is_done;
}

template <class T>
bool attend(const Call &call) {
  if (call.width <= 32) return attend_rows<T, 2>(call);
  if (call.width <= 64) return attend_rows<T, 4>(call);
  if (call.width <= 128) return attend_rows<T, 8>(call);
  return attend_rows<T, 16>(call);
}

}  // namespace

// 0, or 1 if memory ran out.
extern "C" int attend_float32(const Call *call) { return attend<float>(*call) ? 0 : 1; }
extern "C" int attend_bfloat16(const Call *call) { return attend<BFloat16>(*call) ? 0 : 1; }
