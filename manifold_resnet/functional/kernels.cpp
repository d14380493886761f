// The bodies of the Poincare layers for CPUs, each in as few passes over memory as its sums allow.
//
// The same formulas as the functions of the same names in manifold_resnet/functional/, which explain them; tests compare
// the two. Tensors are [B, C, N] and contiguous: images, channels, pixels. Blocks of pixels are dealt to the threads;
// within a block, loops over pixels are innermost, so that the compiler turns them into vector instructions.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>
#ifdef _OPENMP
#include <omp.h>
#endif

namespace {

constexpr int64_t W = 128;  // pixels in a block

#ifdef _OPENMP
#define SIMD _Pragma("omp simd")
#else
#define SIMD
#endif
#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

template <typename T> struct Format;
template <> struct Format<float> {
  using Bits = int32_t;
  static constexpr int mantissa = 23, bias = 127, exp_terms = 3, log_terms = 5, series_terms = 5;
  static constexpr Bits sqrt_half = 0x3f3504f3;
  static constexpr float ln2_high = 0.693145751953125f, ln2_low = 1.42860677e-6f;
  static constexpr float sinh_limit = 40, overflow = 80, tiny = 1e-30f, series = 0.05f, far = 1e10f;
};
template <> struct Format<double> {
  using Bits = int64_t;
  static constexpr int mantissa = 52, bias = 1023, exp_terms = 6, log_terms = 11, series_terms = 9;
  static constexpr Bits sqrt_half = 0x3fe6a09e667f3bcd;
  static constexpr double ln2_high = 0.693147180369123816490, ln2_low = 1.90821492927058770002e-10;
  static constexpr double sinh_limit = 300, overflow = 700, tiny = 1e-200, series = 0.01, far = 1e20;
};

template <typename T> inline T from_bits(typename Format<T>::Bits b) {
  T x;
  std::memcpy(&x, &b, sizeof x);
  return x;
}

template <typename T> inline typename Format<T>::Bits to_bits(T x) {
  typename Format<T>::Bits b;
  std::memcpy(&b, &x, sizeof b);
  return b;
}

// Exact near zero, as the next: there n = 0, and what approaches zero is a factor. One division, for they are slow.
template <typename T> inline T asinh(T q, T root) {  // root = sqrt(1 + q^2)
  using F = Format<T>;
  using Bits = typename F::Bits;
  const T a = std::abs(q), cosh = a < F::far ? root : a;
  const T u = cosh + a;           // exp(asinh a) = 2^n f
  const T lost = a - (u - cosh);  // to rounding
  const Bits b = to_bits(u) - F::sqrt_half;
  const Bits n = b >> F::mantissa;
  const T f = from_bits<T>((b & ((Bits(1) << F::mantissa) - 1)) + F::sqrt_half);
  const T above = n == 0 ? a : (f - 1) + lost * from_bits<T>((F::bias - n) << F::mantissa);
  const T s = above / (n == 0 ? 1 + root : 1 + f), z = s * s;  // log f = 2 artanh s
  T p = T(1) / (2 * F::log_terms + 1);
  UNROLL for (int i = F::log_terms - 1; i >= 1; --i) p = p * z + T(1) / (2 * i + 1);
  return std::copysign(T(n) * F::ln2_high + (T(n) * F::ln2_low + (2 * s + 2 * s * z * p)), q);
}

// for |y| <= overflow
template <typename T> inline void sinh_cosh(T y, T& sinh, T& cosh) {
  using F = Format<T>;
  using Bits = typename F::Bits;
  // of cosh(r) - 1 over r^2, and of sinh(r)/r - 1 over r^2
  constexpr T even[] = {T(1) / 2, T(1) / 24, T(1) / 720, T(1) / 40320, T(1) / 3628800, T(1) / 479001600};
  constexpr T odd[] = {T(1) / 6, T(1) / 120, T(1) / 5040, T(1) / 362880, T(1) / 39916800, T(1) / 6227020800.0};
  const T a = std::abs(y);
  const Bits n = static_cast<Bits>(a * T(1.4426950408889634) + T(0.5));
  const T r = (a - T(n) * F::ln2_high) - T(n) * F::ln2_low, z = r * r;
  T p = even[F::exp_terms - 1], q = odd[F::exp_terms - 1];
  UNROLL for (int i = F::exp_terms - 2; i >= 0; --i) {
    p = p * z + even[i];
    q = q * z + odd[i];
  }
  const T up = T(0.5) * from_bits<T>((F::bias + n) << F::mantissa), down = T(0.5) * from_bits<T>((F::bias - n) << F::mantissa);
  const T cosh_n = up + down, sinh_n = up - down, c = z * p, s = r + r * z * q;  // of n log 2; of r, less one
  sinh = std::copysign((cosh_n * s + sinh_n * c) + sinh_n, y);
  cosh = (sinh_n * s + cosh_n * c) + cosh_n;
}

template <typename T> inline T clamp(T x, T bound) { return x < -bound ? -bound : (x > bound ? bound : x); }

// f(t)/t as a function of x = t^2, and its derivative
template <typename T> inline void sinhc(T x, T& value, T& derivative) {
  constexpr T k[] = {T(1) / 6, T(2) / 120, T(3) / 5040, T(4) / 362880, T(5) / 39916800, T(6) / 6227020800.0,
                     T(7) / 1307674368000.0, T(8) / 355687428096000.0};
  const T t = std::sqrt(x > Format<T>::tiny ? x : Format<T>::tiny);
  T s, c;
  sinh_cosh(t, s, c);
  value = s / t;
  T p = k[Format<T>::series_terms - 2];
  UNROLL for (int i = Format<T>::series_terms - 3; i >= 0; --i) p = p * x + k[i];
  const T y = x > Format<T>::series ? x : Format<T>::series;
  derivative = x > Format<T>::series ? (c - value) / (2 * y) : p;
}

template <typename T> inline T asinhc_derivative(T x, T value, T root) {  // root = sqrt(1 + x)
  constexpr T k[] = {T(-1) / 6, T(2 * 3) / 40, T(-3 * 15) / 336, T(4 * 105) / 3456, T(-5 * 945) / 42240,
                     T(6 * 10395) / 599040, T(-7 * 135135.0) / 9676800, T(8 * 2027025.0) / 175472640};
  T p = k[Format<T>::series_terms - 2];
  UNROLL for (int i = Format<T>::series_terms - 3; i >= 0; --i) p = p * x + k[i];
  const T y = x > Format<T>::series ? x : Format<T>::series;
  return x > Format<T>::series ? (1 / root - value) / (2 * y) : p;
}

template <typename T> inline T asinhc(T x, T root) {
  const T t = std::sqrt(x > Format<T>::tiny ? x : Format<T>::tiny);
  return asinh(t, root) / t;
}

// Square of the longest tangent vectors that sinh allows
template <typename T> inline T sinh_end(T c) { return T(0.25) * Format<T>::sinh_limit * Format<T>::sinh_limit / c; }

// The factor from tangent vectors of squared norm s to the hyperboloid chart, within sinh's range, and its derivatives
// (charts.sinh_factor)
template <typename T> inline void sinh_factor(int64_t count, T root_c, const T* s, T* factor, T* by_s, T* by_c) {
  const T c = root_c * root_c, end = sinh_end(c);
  SIMD for (int64_t i = 0; i < count; ++i) {
    const bool outside = s[i] > end;
    const T inside = outside ? end : s[i], x = 4 * c * inside, beyond = outside ? s[i] : end;
    T value, derivative;
    sinhc(x, value, derivative);
    const T f = 2 * root_c * value, shrunk = f * std::sqrt(end / beyond);
    factor[i] = shrunk;
    by_s[i] = outside ? -T(0.5) * shrunk / beyond : 8 * c * root_c * derivative;
    by_c[i] = outside ? T(0) : (value + 2 * x * derivative) / root_c;
  }
}

// The factor that bounds points of squared norm s in the hyperboloid chart and converts them, and its derivatives
// (charts.bounded_factor)
template <typename T>
inline void bounded_factor(int64_t count, T root_c, T limit, bool tangent, const T* s, T* factor, T* by_s, T* by_c) {
  const T half = T(0.5) / root_c;
  SIMD for (int64_t i = 0; i < count; ++i) {
    const bool outside = s[i] > limit;
    const T beyond = outside ? s[i] : limit, shrink = std::sqrt(limit / beyond);
    factor[i] = shrink;
    by_s[i] = outside ? -T(0.5) * shrink / beyond : T(0);
    by_c[i] = 0;
  }
  if (!tangent) return;
  SIMD for (int64_t i = 0; i < count; ++i) {
    const bool outside = s[i] > limit;
    const T inside = outside ? limit : s[i], root = std::sqrt(1 + inside), value = half * asinhc(inside, root);
    factor[i] *= value;
    by_s[i] = outside ? by_s[i] * value : half * asinhc_derivative(inside, value / half, root);
    by_c[i] = -T(0.5) * factor[i] / (root_c * root_c);
  }
}

struct Shape {
  int64_t images, channels, pixels;
  int64_t blocks() const { return (pixels + W - 1) / W; }
};

// Calls body(image, first pixel, number of pixels, sums of this thread) for all blocks, and adds up the sums.
template <typename Body> void for_blocks(Shape shape, int threads, int64_t n_sums, double* sums, Body body) {
  const int64_t blocks = shape.blocks(), total = shape.images * blocks;
  if (total * shape.channels * W < 16384) threads = 1;  // a team takes longer to start than this
  std::vector<double> partial(static_cast<size_t>(n_sums * threads), 0.0);
#ifdef _OPENMP
#pragma omp parallel num_threads(threads) if (threads > 1)
#endif
  {
#ifdef _OPENMP
    const int64_t thread = omp_get_thread_num(), team = omp_get_num_threads();
#else
    const int64_t thread = 0, team = 1;
#endif
    // the same blocks for the same thread, whatever the schedule: results do not change from run to run
    for (int64_t i = total * thread / team; i < total * (thread + 1) / team; ++i) {
      const int64_t first = (i % blocks) * W;
      const int64_t count = first + W < shape.pixels ? W : shape.pixels - first;
      body(i / blocks, first, count, partial.data() + thread * n_sums);
    }
  }
  for (int64_t k = 0; k < n_sums; ++k) {
    double sum = 0;
    for (int t = 0; t < threads; ++t) sum += partial[t * n_sums + k];
    sums[k] = sum;
  }
}

template <typename T> void square(Shape d, int threads, const T* v, T* out) {
  for_blocks(d, threads, 0, nullptr, [=](int64_t b, int64_t first, int64_t count, double*) {
    T s[W] = {};
    for (int64_t k = 0; k < d.channels; ++k) {
      const T* x = v + (b * d.channels + k) * d.pixels + first;
      SIMD for (int64_t i = 0; i < count; ++i) s[i] += x[i] * x[i];
    }
    std::memcpy(out + b * d.pixels + first, s, count * sizeof(T));
  });
}

// Distances to hyperplanes, or (with Points) the points that have these, with a bound; excess is theirs
template <typename T, bool Points>
void hyperplanes(Shape d, int threads, const T* inner, const T* square, const T* two_norm, const T* cosh_r,
                 const T* sinh_r, T c, T limit, T* out, T* excess, T* slope) {
  const T root_c = std::sqrt(c), end = sinh_end(c);
  for_blocks(d, threads, 0, nullptr, [=](int64_t b, int64_t first, int64_t count, double*) {
    T e[W], cosh[W], s[W] = {};
    const int64_t pixel = b * d.pixels + first;
    SIMD for (int64_t i = 0; i < count; ++i) {
      const T n = square[pixel + i], inside = n > end ? end : n, beyond = n > end ? n : end;
      T value, unused;
      sinhc(4 * c * inside, value, unused);
      e[i] = 2 * root_c * value * std::sqrt(end / beyond);
      cosh[i] = std::sqrt(1 + e[i] * e[i] * n);
      slope[pixel + i] = e[i];
    }
    for (int64_t k = 0; k < d.channels; ++k) {
      const T* a = inner + (b * d.channels + k) * d.pixels + first;
      T* h = out + (b * d.channels + k) * d.pixels + first;
      const T p = two_norm[k], cr = cosh_r[k], sr = sinh_r[k];
      SIMD for (int64_t i = 0; i < count; ++i) {
        const T q = a[i] * (e[i] * cr) - cosh[i] * sr, y = p * asinh(q, std::sqrt(1 + q * q));
        if constexpr (Points) {
          T sinh, unused;
          sinh_cosh(clamp(y, Format<T>::sinh_limit), sinh, unused);
          h[i] = sinh;
          s[i] += sinh * sinh;
        } else {
          h[i] = y / root_c;
        }
      }
    }
    if constexpr (Points) {
      T most = 0;
      for (int64_t i = 0; i < count; ++i) {
        excess[pixel + i] = s[i] > limit ? std::sqrt(s[i] / limit) : T(1);
        most = s[i] > most ? s[i] : most;
      }
      if (!(most > limit)) return;
      for (int64_t k = 0; k < d.channels; ++k) {
        T* h = out + (b * d.channels + k) * d.pixels + first;
        for (int64_t i = 0; i < count; ++i) h[i] /= excess[pixel + i];
      }
    }
  });
}

// sums: [K] for the norms, [K] of q grad_q, [K] of cosh grad_q, [1] c times that for c; `out` is what went out
template <typename T, bool Points>
void hyperplanes_backward(Shape d, int threads, const T* grad, const T* out, const T* excess, const T* slope,
                          const T* square, const T* two_norm, const T* inverse_norm, const T* cosh_r, const T* sinh_r,
                          T c, T limit, T* grad_inner, T* grad_square, double* sums) {
  const int64_t K = d.channels;
  const T root_c = std::sqrt(c), reach = std::sinh(Format<T>::sinh_limit) * T(1 - 1e-5), end = sinh_end(c);
  for_blocks(d, threads, 3 * K + 1, sums, [=](int64_t b, int64_t first, int64_t count, double* sum) {
    T along[W] = {}, by_grad[W], by_out[W], cosh[W], along_q[W] = {}, along_sinh[W] = {};
    const int64_t pixel = b * d.pixels + first;
    const T* excess_b = Points ? excess + pixel : nullptr;
    const T* slope_b = slope + pixel;
    const T* square_b = square + pixel;
    T* grad_square_b = grad_square + pixel;
    const T c_ = c;
    const T limit_ = limit;
    const T root_c_ = root_c;
    const T reach_ = reach;
    for (int64_t k = 0; k < K; ++k) {
      const int64_t at = (b * K + k) * d.pixels + first;
      const T* grad_k = grad + at;
      const T* out_k = out + at;
      SIMD for (int64_t i = 0; i < count; ++i) along[i] += grad_k[i] * out_k[i];
    }
    SIMD for (int64_t i = 0; i < count; ++i) {
      const T e = slope_b[i];
      if constexpr (Points) {
        const T x = excess_b[i];
        by_grad[i] = 1 / x;
        by_out[i] = -(x > 1 ? T(1) / limit_ : T(0)) * along[i] * by_grad[i];
      }
      cosh[i] = std::sqrt(1 + e * e * square_b[i]);
    }
    for (int64_t k = 0; k < K; ++k) {
      const int64_t at = (b * K + k) * d.pixels + first;
      const T* grad_k = grad + at;
      const T* out_k = out + at;
      T* grad_inner_k = grad_inner + at;
      const T p = two_norm[k], inverse = inverse_norm[k], cr = cosh_r[k], sr = sinh_r[k];
      T by_norm = 0, by_q = 0, by_cosh = 0;
      _Pragma("omp simd reduction(+ : by_norm, by_q, by_cosh)") for (int64_t i = 0; i < count; ++i) {
        T y, grad_y;  // sqrt(c) times the distance
        if constexpr (Points) {
          const T raw = out_k[i] * excess_b[i], root = std::sqrt(1 + raw * raw);
          const T within = std::abs(raw) < reach_ ? T(1) : T(0);
          grad_y = (by_grad[i] * grad_k[i] + by_out[i] * out_k[i]) * root * within;
          y = asinh(raw, root);
        } else {
          y = out_k[i] * root_c_;
          grad_y = grad_k[i] / root_c_;
        }
        const T asinh_q = clamp(y * inverse, Format<T>::overflow);
        T q, cosh_q;
        sinh_cosh(asinh_q, q, cosh_q);
        const T grad_q = grad_y * p / cosh_q;
        grad_inner_k[i] = grad_q * (slope_b[i] * cr);
        along_q[i] += grad_q * q;
        along_sinh[i] += grad_q * sr;
        by_norm += grad_y * asinh_q;
        by_q += grad_q * q;
        by_cosh += grad_q * cosh[i];
      }
      sum[k] += by_norm;
      sum[K + k] += by_q;
      sum[2 * K + k] += by_cosh;
    }
    T by_c = 0;
    _Pragma("omp simd reduction(+ : by_c)") for (int64_t i = 0; i < count; ++i) {
      const bool outside = square_b[i] > end;
      const T e = slope_b[i], x = 4 * c_ * (outside ? end : square_b[i]), beyond = outside ? square_b[i] : end;
      const T grad_slope = along_q[i] + cosh[i] * along_sinh[i];  // times the slope
      T unused, derivative;
      sinhc(x, unused, derivative);
      const T grad_x = 2 * root_c_ * grad_slope / e * derivative - T(0.25) / root_c_ * along_sinh[i] * e;
      grad_square_b[i] = outside ? -T(0.5) * grad_slope / beyond : 4 * c_ * grad_x;
      by_c += outside ? T(0) : grad_x * x + T(0.5) * grad_slope;
      if constexpr (!Points) by_c -= T(0.5) * along[i];
    }
    sum[3 * K] += by_c;
  });
}

// sums: [C] of the points, [1] of their time parts minus one
template <typename T> void mean_sums(Shape d, int threads, const T* h, double* sums) {
  for_blocks(d, threads, d.channels + 1, sums, [=](int64_t b, int64_t first, int64_t count, double* sum) {
    T s[W] = {};
    for (int64_t k = 0; k < d.channels; ++k) {
      const T* x = h + (b * d.channels + k) * d.pixels + first;
      T total = 0;
      _Pragma("omp simd reduction(+ : total)") for (int64_t i = 0; i < count; ++i) {
        s[i] += x[i] * x[i];
        total += x[i];
      }
      sum[k] += total;
    }
    T total = 0;
    _Pragma("omp simd reduction(+ : total)") for (int64_t i = 0; i < count; ++i)
        total += s[i] / (1 + std::sqrt(1 + s[i]));
    sum[d.channels] += total;
  });
}

template <typename T> inline T time_of(const T* m, int64_t channels) {
  T s = 0;
  for (int64_t k = 0; k < channels; ++k) s += m[k] * m[k];
  return std::sqrt(1 + s);
}

// A block of pixels of an image: C rows of `count` numbers, `stride` apart
template <typename T> struct Block {
  int64_t channels, stride, count;
};

// xi and log
template <typename T>
inline void center(Block<T> d, const T* h, const T* m, T time_m, T half, T* __restrict xi, T* __restrict log) {
  T s[W] = {}, h_m[W] = {}, b_b[W] = {};
  for (int64_t k = 0; k < d.channels; ++k) {
    const T* x = h + k * d.stride;
    const T mk = m[k];
    SIMD for (int64_t i = 0; i < d.count; ++i) {
      s[i] += x[i] * x[i];
      h_m[i] += x[i] * mk;
    }
  }
  SIMD for (int64_t i = 0; i < d.count; ++i) xi[i] = std::sqrt(1 + s[i]) - h_m[i] / (1 + time_m);
  for (int64_t k = 0; k < d.channels; ++k) {
    const T* x = h + k * d.stride;
    const T mk = m[k];
    SIMD for (int64_t i = 0; i < d.count; ++i) {
      const T v = x[i] - xi[i] * mk;
      b_b[i] += v * v;
    }
  }
  SIMD for (int64_t i = 0; i < d.count; ++i) log[i] = half * asinhc(b_b[i], std::sqrt(1 + b_b[i]));
}

template <typename T>
inline void recenter(Block<T> d, const T* h, const T* m, const T* xi, const T* log, const T* ratio, const T* beta,
                     T time_beta, T root_c, T limit, bool tangent, bool relu, T* out) {
  T s[W] = {}, u_beta[W] = {}, time[W], s_y[W] = {}, exp[W], out_y[W], unused[W], unused_too[W];
  for (int64_t k = 0; k < d.channels; ++k) {
    const T* x = h + k * d.stride;
    const T mk = m[k], rk = ratio[k], bk = beta[k];
    SIMD for (int64_t i = 0; i < d.count; ++i) {
      const T u = (x[i] - xi[i] * mk) * log[i] * rk;
      s[i] += u * u;
      u_beta[i] += u * bk;
    }
  }
  sinh_factor(d.count, root_c, s, exp, unused, unused_too);
  SIMD for (int64_t i = 0; i < d.count; ++i) {
    time[i] = std::sqrt(1 + exp[i] * exp[i] * s[i]) + exp[i] * (u_beta[i] / (1 + time_beta));
    exp[i] *= log[i];
  }
  for (int64_t k = 0; k < d.channels; ++k) {
    const T* x = h + k * d.stride;
    const T mk = m[k], rk = ratio[k], bk = beta[k];
    SIMD for (int64_t i = 0; i < d.count; ++i) {
      const T y = exp[i] * ((x[i] - xi[i] * mk) * rk) + time[i] * bk;
      s_y[i] += y * y;
    }
  }
  bounded_factor(d.count, root_c, limit, tangent, s_y, out_y, unused, unused_too);
  SIMD for (int64_t i = 0; i < d.count; ++i) {
    exp[i] *= out_y[i];
    time[i] *= out_y[i];
  }
  const T floor = relu ? T(0) : -INFINITY;
  for (int64_t k = 0; k < d.channels; ++k) {
    const T* x = h + k * d.stride;
    T* to = out + k * d.stride;
    const T mk = m[k], rk = ratio[k], bk = beta[k];
    SIMD for (int64_t i = 0; i < d.count; ++i) {
      const T y = exp[i] * ((x[i] - xi[i] * mk) * rk) + time[i] * bk;
      to[i] = y < floor ? floor : y;
    }
  }
}

// sums: [C] of w^2
template <typename T>
void moments(Shape d, int threads, const T* h, const T* m, T c, T* xi, T* log, double* sums) {
  const T time_m = time_of(m, d.channels), half = T(0.5) / std::sqrt(c);
  for_blocks(d, threads, d.channels, sums, [=](int64_t b, int64_t first, int64_t count, double* sum) {
    const int64_t pixel = b * d.pixels + first;
    const T* block = h + b * d.channels * d.pixels + first;
    T *x_i = xi + pixel, *l = log + pixel;
    center<T>({d.channels, d.pixels, count}, block, m, time_m, half, x_i, l);
    for (int64_t k = 0; k < d.channels; ++k) {
      const T* x = block + k * d.pixels;
      const T mk = m[k];
      T total = 0;
      _Pragma("omp simd reduction(+ : total)") for (int64_t i = 0; i < count; ++i) {
        const T w = (x[i] - x_i[i] * mk) * l[i];
        total += w * w;
      }
      sum[k] += total;
    }
  });
}

// With xi and log computed (and kept) before, or, if `known` is false, on the way
template <typename T>
void recentered(Shape d, int threads, const T* h, const T* m, bool known, T* xi, T* log, const T* ratio,
                const T* beta, T c, T limit, bool tangent, bool relu, T* out) {
  const T root_c = std::sqrt(c), time_beta = time_of(beta, d.channels), time_m = time_of(m, d.channels);
  for_blocks(d, threads, 0, nullptr, [=](int64_t b, int64_t first, int64_t count, double*) {
    const int64_t at = b * d.channels * d.pixels + first;
    T *x_i = xi + b * d.pixels + first, *l = log + b * d.pixels + first;
    const Block<T> block = {d.channels, d.pixels, count};
    if (!known) center<T>(block, h + at, m, time_m, T(0.5) / root_c, x_i, l);
    recenter<T>(block, h + at, m, x_i, l, ratio, beta, time_beta, root_c, limit, tangent, relu, out + at);
  });
}

// sums: [C] of grad_u w, [C] for beta, [1] for c. `result` is null without ReLU.
template <typename T>
void recenter_backward(Shape d, int threads, const T* grad, const T* result, const T* h, const T* m, const T* xi,
                       const T* log, const T* ratio, const T* beta, T c, T limit, bool tangent, T* grad_u,
                       double* sums) {
  const int64_t C = d.channels;
  const T root_c = std::sqrt(c), time_beta = time_of(beta, C), square_beta = time_beta * time_beta - 1;
  for_blocks(d, threads, 2 * C + 2, sums, [=](int64_t b, int64_t first, int64_t count, double* sum) {
    const int64_t pixel = b * d.pixels + first;
    const T root_c_ = root_c;
    const T limit_ = limit;
    const T time_beta_ = time_beta;
    const T square_beta_ = square_beta;
    T s[W] = {}, u_beta[W] = {}, g_u[W] = {}, g_beta[W] = {};
    T by_grad[W], by_u[W], by_beta[W], beta_grad[W], beta_u[W];
    const T* x_i = xi + pixel;
    const T* l = log + pixel;
    for (int64_t k = 0; k < C; ++k) {
      const int64_t at = (b * C + k) * d.pixels + first;
      const T* grad_k = grad + at;
      const T* h_k = h + at;
      const T mk = m[k], rk = ratio[k], bk = beta[k];
      const T* y = result ? result + at : nullptr;
      T* g = grad_u + at;  // the gradient behind the ReLU, for now
      if (y) {
        SIMD for (int64_t i = 0; i < count; ++i) g[i] = grad_k[i] * (y[i] > 0 ? T(1) : T(0));
      } else {
        std::memcpy(g, grad + at, count * sizeof(T));
      }
      SIMD for (int64_t i = 0; i < count; ++i) {
        const T u = (h_k[i] - x_i[i] * mk) * l[i] * rk;
        s[i] += u * u;
        u_beta[i] += u * bk;
        g_u[i] += g[i] * u;
        g_beta[i] += g[i] * bk;
      }
    }
    T exp[W], exp_s[W], exp_c[W], time[W], s_y[W], out[W], out_s[W], out_c[W];
    sinh_factor(count, root_c_, s, exp, exp_s, exp_c);
    SIMD for (int64_t i = 0; i < count; ++i) {
      time[i] = std::sqrt(1 + exp[i] * exp[i] * s[i]) + exp[i] * (u_beta[i] / (1 + time_beta_));
      const T y = exp[i] * exp[i] * s[i] + 2 * exp[i] * time[i] * u_beta[i] + time[i] * time[i] * square_beta_;
      s_y[i] = y < 0 ? T(0) : y;
    }
    bounded_factor(count, root_c_, limit_, tangent, s_y, out, out_s, out_c);
    T sum_beta = 0, sum_c = 0;
    _Pragma("omp simd reduction(+ : sum_beta, sum_c)") for (int64_t i = 0; i < count; ++i) {
      const T e = exp[i], t = time[i], along_beta = u_beta[i] / (1 + time_beta_), time_u = t - e * along_beta;
      const T grad_y = e * g_u[i] + t * g_beta[i], k = 2 * out_s[i] * grad_y;
      const T y_u = e * s[i] + t * u_beta[i], y_beta = e * u_beta[i] + t * square_beta_;
      const T to_u = out[i] * g_u[i] + k * y_u, to_beta = out[i] * g_beta[i] + k * y_beta;
      const T by_exp = to_u + to_beta * (along_beta + e * s[i] / time_u);
      const T to_center = to_beta * e / (1 + time_beta_);
      by_grad[i] = e * out[i];
      by_u[i] = k * e * e + 2 * by_exp * exp_s[i] + to_beta * e * e / time_u;
      by_beta[i] = k * e * t + to_center;
      beta_grad[i] = t * out[i];
      beta_u[i] = t * k * e + to_center;
      sum_beta += t * t * k - to_center * along_beta / time_beta_;
      sum_c += exp_c[i] * by_exp + out_c[i] * grad_y;
    }
    sum[2 * C] += sum_beta;
    sum[2 * C + 1] += sum_c;
    for (int64_t k = 0; k < C; ++k) {
      const int64_t at = (b * C + k) * d.pixels + first;
      const T* h_k = h + at;
      T* grad_u_k = grad_u + at;
      const T mk = m[k], rk = ratio[k], bk = beta[k];
      T along_w = 0, to_beta = 0;
      _Pragma("omp simd reduction(+ : along_w, to_beta)") for (int64_t i = 0; i < count; ++i) {
        const T g = grad_u_k[i], w = (h_k[i] - x_i[i] * mk) * l[i], u = w * rk;
        const T value = by_grad[i] * g + by_u[i] * u + by_beta[i] * bk;
        grad_u_k[i] = value;
        along_w += value * w;
        to_beta += beta_grad[i] * g + beta_u[i] * u;
      }
      sum[k] += along_w;
      sum[C + k] += to_beta;
    }
  });
  for (int64_t k = 0; k < C; ++k) sums[C + k] += sums[2 * C] * beta[k];
}

// sums: [C] for the mean, [1] for c (through log)
template <typename T>
void center_backward(Shape d, int threads, const T* grad_u, const T* h, const T* m, const T* xi, const T* log,
                     const T* ratio, const T* decay, T c, T* by_h, T* by_m, T* inverse_time, double* sums) {
  const int64_t C = d.channels;
  const T time_m = time_of(m, C), square_m = time_m * time_m - 1, root_c = std::sqrt(c);
  for_blocks(d, threads, C + 2, sums, [=](int64_t b, int64_t first, int64_t count, double* sum) {
    T g_b[W] = {}, g_m[W] = {}, s[W] = {}, h_m[W] = {};
    const int64_t pixel = b * d.pixels + first;
    T* by_h_b = by_h + pixel;
    T* by_m_b = by_m + pixel;
    T* inverse_time_b = inverse_time + pixel;
    const T root_c_ = root_c;
    const T time_m_ = time_m;
    const T square_m_ = square_m;
    const T* x_i = xi + pixel;
    const T* l = log + pixel;
    for (int64_t k = 0; k < C; ++k) {
      const int64_t at = (b * C + k) * d.pixels + first;
      const T* grad_u_k = grad_u + at;
      const T* h_k = h + at;
      const T mk = m[k], rk = ratio[k], dk = decay[k];
      SIMD for (int64_t i = 0; i < count; ++i) {
        const T x = h_k[i], v = x - x_i[i] * mk, g = rk * grad_u_k[i] + dk * l[i] * v;
        g_b[i] += g * v;
        g_m[i] += g * mk;
        s[i] += v * v;
        h_m[i] += x * mk;
      }
    }
    T sum_m = 0, sum_c = 0, mean_h[W];
    _Pragma("omp simd reduction(+ : sum_m, sum_c)") for (int64_t i = 0; i < count; ++i) {
      const T along_m = h_m[i] / (1 + time_m_), time = x_i[i] + along_m;
      const T k = asinhc_derivative(s[i], 2 * root_c_ * l[i], std::sqrt(1 + s[i])) / root_c_ * g_b[i];
      const T p = (l[i] * g_m[i] + k * (h_m[i] - x_i[i] * square_m_)) / (1 + time_m_);
      by_h_b[i] = k - p * (1 + time_m_) / time;
      mean_h[i] = by_m_b[i] = p - k * x_i[i];
      inverse_time_b[i] = 1 / time;
      sum_m += k * x_i[i] * x_i[i] - p * along_m / time_m_;
      sum_c += l[i] * g_b[i];
    }
    sum[C] += sum_c;
    sum[C + 1] += sum_m;
    for (int64_t k = 0; k < C; ++k) {
      const int64_t at = (b * C + k) * d.pixels + first;
      const T* grad_u_k = grad_u + at;
      const T* h_k = h + at;
      const T mk = m[k], rk = ratio[k], dk = decay[k];
      T total = 0;
      _Pragma("omp simd reduction(+ : total)") for (int64_t i = 0; i < count; ++i) {
        const T x = h_k[i], g = rk * grad_u_k[i] + dk * l[i] * (x - x_i[i] * mk);
        total += mean_h[i] * x - x_i[i] * l[i] * g;
      }
      sum[k] += total;
    }
  });
  for (int64_t k = 0; k < C; ++k) sums[k] += sums[C + 1] * m[k];
}

// by_h gets to_excess/time added
template <typename T>
void input_backward(Shape d, int threads, const T* grad_u, const T* h, const T* m, const T* xi, const T* log,
                    const T* ratio, const T* decay, const T* by_h, const T* by_m, const T* inverse_time,
                    const T* constant, T to_excess, T* out) {
  for_blocks(d, threads, 0, nullptr, [=](int64_t b, int64_t first, int64_t count, double*) {
    const int64_t pixel = b * d.pixels + first;
    const T* by_h_b = by_h + pixel;
    const T* by_m_b = by_m + pixel;
    const T* inverse_time_b = inverse_time + pixel;
    const T to_excess_ = to_excess;
    const T* x_i = xi + pixel;
    const T* l = log + pixel;
    T to_h[W];
    SIMD for (int64_t i = 0; i < count; ++i) to_h[i] = by_h_b[i] + to_excess_ * inverse_time_b[i];
    for (int64_t k = 0; k < d.channels; ++k) {
      const int64_t at = (b * d.channels + k) * d.pixels + first;
      const T* grad_u_k = grad_u + at;
      const T* h_k = h + at;
      T* out_k = out + at;
      const T mk = m[k], rk = ratio[k], dk = decay[k], ck = constant[k];
      SIMD for (int64_t i = 0; i < count; ++i) {
        const T x = h_k[i], g = rk * grad_u_k[i] + dk * l[i] * (x - x_i[i] * mk);
        out_k[i] = ck + to_h[i] * x + by_m_b[i] * mk + l[i] * g;
      }
    }
  });
}

template <typename T>
inline void shortcut_factor(int64_t count, T root_c, bool tangent, const T* s, T* factor, T* by_s, T* by_c) {
  if (tangent) return sinh_factor(count, root_c, s, factor, by_s, by_c);
  for (int64_t i = 0; i < count; ++i) {
    factor[i] = 1;
    by_s[i] = by_c[i] = 0;
  }
}

// What x and the shortcut are multiplied by (residual._factors)
template <typename T>
inline void sum_factors(int64_t count, const T* s_x, const T* s_r, const T* inner, const T* exp, bool x_first, T* by_x,
                        T* by_r) {
  if (x_first) {
    SIMD for (int64_t i = 0; i < count; ++i) {
      by_x[i] = std::sqrt(1 + exp[i] * exp[i] * s_r[i]) + exp[i] * inner[i] / (1 + std::sqrt(1 + s_x[i]));
      by_r[i] = exp[i];
    }
  } else {
    SIMD for (int64_t i = 0; i < count; ++i) {
      const T time_r = std::sqrt(1 + exp[i] * exp[i] * s_r[i]);
      by_x[i] = 1;
      by_r[i] = exp[i] * (std::sqrt(1 + s_x[i]) + exp[i] * inner[i] / (1 + time_r));
    }
  }
}

template <typename T>
void residual(Shape d, int threads, const T* x, const T* r, T c, T limit, bool x_first, bool r_tangent, bool tangent,
              bool relu, T* out) {
  const T root_c = std::sqrt(c);
  for_blocks(d, threads, 0, nullptr, [=](int64_t b, int64_t first, int64_t count, double*) {
    const T root_c_ = root_c;
    const T limit_ = limit;
    T s_x[W] = {}, s_r[W] = {}, inner[W] = {}, s_z[W] = {}, by_x[W], by_r[W];
    for (int64_t k = 0; k < d.channels; ++k) {
      const int64_t at = (b * d.channels + k) * d.pixels + first;
      const T* x_k = x + at;
      const T* r_k = r + at;
      SIMD for (int64_t i = 0; i < count; ++i) {
        s_x[i] += x_k[i] * x_k[i];
        s_r[i] += r_k[i] * r_k[i];
        inner[i] += x_k[i] * r_k[i];
      }
    }
    T exp[W], out_z[W], unused[W], unused_too[W];
    shortcut_factor(count, root_c_, r_tangent, s_r, exp, unused, unused_too);
    sum_factors(count, s_x, s_r, inner, exp, x_first, by_x, by_r);
    for (int64_t k = 0; k < d.channels; ++k) {
      const int64_t at = (b * d.channels + k) * d.pixels + first;
      const T* x_k = x + at;
      const T* r_k = r + at;
      SIMD for (int64_t i = 0; i < count; ++i) {
        const T z = by_x[i] * x_k[i] + by_r[i] * r_k[i];
        s_z[i] += z * z;
      }
    }
    bounded_factor(count, root_c_, limit_, tangent, s_z, out_z, unused, unused_too);
    SIMD for (int64_t i = 0; i < count; ++i) {
      by_x[i] *= out_z[i];
      by_r[i] *= out_z[i];
    }
    const T floor = relu ? T(0) : -INFINITY;
    for (int64_t k = 0; k < d.channels; ++k) {
      const int64_t at = (b * d.channels + k) * d.pixels + first;
      const T* x_k = x + at;
      const T* r_k = r + at;
      T* out_k = out + at;
      SIMD for (int64_t i = 0; i < count; ++i) {
        const T z = by_x[i] * x_k[i] + by_r[i] * r_k[i];
        out_k[i] = z < floor ? floor : z;
      }
    }
  });
}

// sums: [1] for c. `result` is null without ReLU.
template <typename T>
void residual_backward(Shape d, int threads, const T* grad, const T* result, const T* x, const T* r, T c, T limit,
                       bool x_first, bool r_tangent, bool tangent, T* grad_x, T* grad_r, double* sums) {
  const T root_c = std::sqrt(c);
  for_blocks(d, threads, 1, sums, [=](int64_t b, int64_t first, int64_t count, double* sum) {
    const T root_c_ = root_c;
    const T limit_ = limit;
    T s_x[W] = {}, s_r[W] = {}, inner[W] = {}, g_x[W] = {}, g_r[W] = {};
    T x_grad[W], x_x[W], mixed[W], r_grad[W], r_r[W];
    for (int64_t k = 0; k < d.channels; ++k) {
      const int64_t at = (b * d.channels + k) * d.pixels + first;
      const T* grad_k = grad + at;
      const T* result_k = result ? result + at : nullptr;
      const T* x_k = x + at;
      const T* r_k = r + at;
      T* g = grad_x + at;  // the gradient behind the ReLU, for now
      if (result_k) {
        SIMD for (int64_t i = 0; i < count; ++i) g[i] = grad_k[i] * (result_k[i] > 0 ? T(1) : T(0));
      } else {
        std::memcpy(g, grad + at, count * sizeof(T));
      }
      SIMD for (int64_t i = 0; i < count; ++i) {
        s_x[i] += x_k[i] * x_k[i];
        s_r[i] += r_k[i] * r_k[i];
        inner[i] += x_k[i] * r_k[i];
        g_x[i] += g[i] * x_k[i];
        g_r[i] += g[i] * r_k[i];
      }
    }
    T exp[W], exp_s[W], exp_c[W], by_x[W], by_r[W], s_z[W], out[W], out_s[W], out_c[W];
    T to_x[W], to_r[W], to_inner[W], to_s_x[W], to_exp[W], to_s_r[W];
    shortcut_factor(count, root_c_, r_tangent, s_r, exp, exp_s, exp_c);
    sum_factors(count, s_x, s_r, inner, exp, x_first, by_x, by_r);
    SIMD for (int64_t i = 0; i < count; ++i) {
      const T z = by_x[i] * by_x[i] * s_x[i] + 2 * by_x[i] * by_r[i] * inner[i] + by_r[i] * by_r[i] * s_r[i];
      s_z[i] = z < 0 ? T(0) : z;
    }
    bounded_factor(count, root_c_, limit_, tangent, s_z, out, out_s, out_c);
    SIMD for (int64_t i = 0; i < count; ++i) {
      const T k = 2 * out_s[i] * (by_x[i] * g_x[i] + by_r[i] * g_r[i]);
      to_x[i] = out[i] * g_x[i] + k * (by_x[i] * s_x[i] + by_r[i] * inner[i]);
      to_r[i] = out[i] * g_r[i] + k * (by_x[i] * inner[i] + by_r[i] * s_r[i]);
    }
    if (x_first) {
      SIMD for (int64_t i = 0; i < count; ++i) {
        const T e = exp[i], time_x = std::sqrt(1 + s_x[i]), time_r = std::sqrt(1 + e * e * s_r[i]);
        to_inner[i] = to_x[i] * e / (1 + time_x);
        to_s_x[i] = -T(0.5) * to_inner[i] * inner[i] / ((1 + time_x) * time_x);
        to_exp[i] = to_r[i] + to_x[i] * (inner[i] / (1 + time_x) + e * s_r[i] / time_r);
        to_s_r[i] = T(0.5) * to_x[i] * e * e / time_r;
      }
    } else {
      SIMD for (int64_t i = 0; i < count; ++i) {
        const T e = exp[i], time_x = std::sqrt(1 + s_x[i]), time_r = std::sqrt(1 + e * e * s_r[i]);
        to_inner[i] = to_r[i] * e * e / (1 + time_r);
        const T to_time_r = -to_inner[i] * inner[i] / (1 + time_r);
        to_s_x[i] = T(0.5) * to_r[i] * e / time_x;
        to_exp[i] = to_r[i] * (time_x + 2 * e * inner[i] / (1 + time_r)) + to_time_r * e * s_r[i] / time_r;
        to_s_r[i] = T(0.5) * to_time_r * e * e / time_r;
      }
    }
    T by_c = 0;
    _Pragma("omp simd reduction(+ : by_c)") for (int64_t i = 0; i < count; ++i) {
      const T grad_z = by_x[i] * g_x[i] + by_r[i] * g_r[i], k = 2 * out_s[i] * grad_z;
      by_c += out_c[i] * grad_z + to_exp[i] * exp_c[i];
      x_grad[i] = out[i] * by_x[i];
      x_x[i] = k * by_x[i] * by_x[i] + 2 * to_s_x[i];
      mixed[i] = k * by_x[i] * by_r[i] + to_inner[i];
      r_grad[i] = out[i] * by_r[i];
      r_r[i] = k * by_r[i] * by_r[i] + 2 * (to_s_r[i] + to_exp[i] * exp_s[i]);
    }
    sum[0] += by_c;
    for (int64_t k = 0; k < d.channels; ++k) {
      const int64_t at = (b * d.channels + k) * d.pixels + first;
      const T* x_k = x + at;
      const T* r_k = r + at;
      T* grad_x_k = grad_x + at;
      T* grad_r_k = grad_r + at;
      SIMD for (int64_t i = 0; i < count; ++i) {
        const T g = grad_x_k[i], xi = x_k[i], ri = r_k[i];
        grad_x_k[i] = x_grad[i] * g + x_x[i] * xi + mixed[i] * ri;
        grad_r_k[i] = r_grad[i] * g + mixed[i] * xi + r_r[i] * ri;
      }
    }
  });
}

// -- layers: the passes above and the arithmetic between them ---------------------------------------------

template <typename T> inline double exact_dot(int64_t n, const T* a, const T* b) {
  double sum = 0;
  _Pragma("omp simd reduction(+ : sum)") for (int64_t i = 0; i < n; ++i) sum += double(a[i]) * b[i];
  return sum;
}

// Directions (times factor) and lengths of hyperplane normals (_hyperplanes._directions)
template <typename T>
void directions(int64_t rows, int64_t n, const T* weight, double c, double scale, double factor, T* out, T* norm) {
  const double eps = sizeof(T) == 4 ? 1.1920929e-07 : 2.220446049250313e-16, most = (1 - 2 * eps) * (1 - 2 * eps);
  for (int64_t k = 0; k < rows; ++k) {
    const double s = exact_dot(n, weight + k * n, weight + k * n);
    const double radius = std::sqrt(s), inverse = factor / std::max(radius, double(Format<T>::tiny));
    for (int64_t i = 0; i < n; ++i) out[k * n + i] = T(weight[k * n + i] * inverse);
    const double t = std::sqrt(std::min(c * s, most));
    norm[k] = T(scale < 0 ? radius : (t > 0 ? scale * radius * std::atanh(t) / t : 0));
  }
}

template <typename T>
void directions_backward(int64_t rows, int64_t n, const T* grad, const T* grad_norm, const T* weight, double c,
                         double scale, double factor, T* out, double* by_c) {
  const double eps = sizeof(T) == 4 ? 1.1920929e-07 : 2.220446049250313e-16, most = (1 - 2 * eps) * (1 - 2 * eps);
  *by_c = 0;
  for (int64_t k = 0; k < rows; ++k) {
    const T *w = weight + k * n, *g = grad ? grad + k * n : nullptr;
    const double s = exact_dot(n, w, w), along = g ? exact_dot(n, g, w) : 0;
    const double radius = std::sqrt(s), inverse = 1 / std::max(radius, double(Format<T>::tiny));
    double slope = grad_norm ? grad_norm[k] : 0;
    if (scale >= 0) {
      const double x = std::min(c * s, most), t = std::sqrt(x);
      // derivative of artanh(t)/t for t^2
      const double d = x > 1e-2 ? (1 / (1 - x) - std::atanh(t) / t) / (2 * x)
                                : 1.0 / 3 + x * (2.0 / 5 + x * (3.0 / 7 + x * (4.0 / 9 + x * (5.0 / 11 + x * (6.0 / 13 +
                                      x * (7.0 / 15 + x * 8.0 / 17))))));
      *by_c += slope * scale * radius * s * d;
      slope *= scale / (1 - x);
    }
    const double by_w = (slope - factor * along * inverse * inverse) * inverse;
    for (int64_t i = 0; i < n; ++i) out[k * n + i] = T((g ? factor * inverse * g[i] : 0) + by_w * w[i]);
  }
}

// A point of the ball in the hyperboloid chart, within the distance cap/sqrt(c) (charts.convert)
inline double lift_factor(double s, double c, double cap, double& by_s, double& by_c) {
  const double t = std::tanh(cap / 2), end = t * t / c, inside = std::min(s, end), half_lambda = 1 / (1 - c * inside);
  const double root_c = std::sqrt(c), factor = 2 * root_c * half_lambda * std::sqrt(inside / std::max(s, end * 1e-300));
  const bool outside = s > end;
  by_s = outside ? -0.5 * factor / s : 2 * c * root_c * half_lambda * half_lambda;
  by_c = outside ? 0 : half_lambda * (1 + 2 * c * s * half_lambda) / root_c;
  return outside ? factor : 2 * root_c * half_lambda;
}

template <typename T> void lift(int64_t n, const T* x, double c, double cap, T* out) {
  double unused, unused_too;
  const double factor = lift_factor(exact_dot(n, x, x), c, cap, unused, unused_too);
  for (int64_t i = 0; i < n; ++i) out[i] = T(factor * x[i]);
}

template <typename T>
void lift_backward(int64_t n, const T* grad, const T* x, double c, double cap, T* out, double* by_c) {
  const double along = exact_dot(n, grad, x);
  double f_s, f_c;
  const double factor = lift_factor(exact_dot(n, x, x), c, cap, f_s, f_c);
  for (int64_t i = 0; i < n; ++i) out[i] = T(factor * grad[i] + 2 * f_s * along * x[i]);
  *by_c = f_c * along;
}

// Window sums of the channels' sums of squares (conv._patch_squares)
struct Window {
  int64_t height, width, out_height, out_width, kh, kw, sh, sw, ph, pw, dh, dw;
  // the columns x of the result with 0 <= x sw + shift < width
  int64_t first(int64_t shift) const { return shift < 0 ? (-shift + sw - 1) / sw : 0; }
  int64_t last(int64_t shift) const {
    return shift >= width ? 0 : std::min(out_width, (width - 1 - shift) / sw + 1);
  }
};

template <typename T>
void window_squares(Shape d, int threads, const T* v, Window w, T factor, T* squares, T* out) {
  square(d, threads, v, squares);
  for_blocks({d.images, 1, W}, threads, 0, nullptr, [=](int64_t b, int64_t, int64_t, double*) {
    const T* s = squares + b * d.pixels;
    std::vector<T> rows(static_cast<size_t>(w.out_height * w.width), T(0));
    for (int64_t y = 0; y < w.out_height; ++y) {
      T* row = rows.data() + y * w.width;
      for (int64_t j = 0; j < w.kh; ++j) {
        const int64_t at = y * w.sh - w.ph + j * w.dh;
        if (at < 0 || at >= w.height) continue;
        const T* from = s + at * w.width;
        SIMD for (int64_t x = 0; x < w.width; ++x) row[x] += from[x];
      }
      T* result = out + (b * w.out_height + y) * w.out_width;
      std::fill(result, result + w.out_width, T(0));
      for (int64_t j = 0; j < w.kw; ++j) {
        const int64_t shift = j * w.dw - w.pw;
        const T* from = row + shift;
        SIMD for (int64_t x = w.first(shift); x < w.last(shift); ++x) result[x] += factor * from[x * w.sw];
      }
    }
  });
}

// grad_v += 2 factor v times, for each pixel, the sum of grad over the windows it is in
template <typename T>
void window_squares_backward(Shape d, int threads, const T* grad, const T* v, Window w, T factor, T* grad_v) {
  for_blocks({d.images, 1, W}, threads, 0, nullptr, [=](int64_t b, int64_t, int64_t, double*) {
    std::vector<T> rows(static_cast<size_t>(w.out_height * w.width), T(0)), all(static_cast<size_t>(d.pixels), T(0));
    for (int64_t y = 0; y < w.out_height; ++y) {
      const T* g = grad + (b * w.out_height + y) * w.out_width;
      T* row = rows.data() + y * w.width;
      for (int64_t j = 0; j < w.kw; ++j) {
        const int64_t shift = j * w.dw - w.pw;
        T* to = row + shift;
        SIMD for (int64_t x = w.first(shift); x < w.last(shift); ++x) to[x * w.sw] += 2 * factor * g[x];
      }
      for (int64_t j = 0; j < w.kh; ++j) {
        const int64_t at = y * w.sh - w.ph + j * w.dh;
        if (at < 0 || at >= w.height) continue;
        T* to = all.data() + at * w.width;
        SIMD for (int64_t x = 0; x < w.width; ++x) to[x] += row[x];
      }
    }
    const T* a = all.data();
    for (int64_t k = 0; k < d.channels; ++k) {
      const T* x = v + (b * d.channels + k) * d.pixels;
      T* to = grad_v + (b * d.channels + k) * d.pixels;
      SIMD for (int64_t i = 0; i < d.pixels; ++i) to[i] += a[i] * x[i];
    }
  });
}

// 2|z|, its inverse, cosh and sinh of 2 sqrt(c) r
template <typename T> struct Hyperplanes {
  std::vector<T> two_norm, inverse_norm, cosh_r, sinh_r;
  Hyperplanes(int64_t count, const T* norm, const T* offset, double c) {
    const double reach = 0.5 * Format<T>::sinh_limit;
    for (int64_t k = 0; k < count; ++k) {
      const double r = offset ? std::min(std::max(2 * std::sqrt(c) * offset[k], -reach), reach) : 0;
      two_norm.push_back(2 * norm[k]);
      inverse_norm.push_back(1 / std::max(2 * norm[k], sizeof(T) == 4 ? T(1e-19) : T(1e-150)));
      cosh_r.push_back(T(std::cosh(r)));
      sinh_r.push_back(T(std::sinh(r)));
    }
  }
};

// A layer's distances to hyperplanes, or, with a limit, points
template <typename T>
void hyperplane_layer(Shape d, int threads, const T* inner, const T* square, const T* norm, const T* offset, T c,
                      const T* limit, T* out, T* excess, T* slope) {
  const Hyperplanes<T> p(d.channels, norm, offset, c);
  auto pass = limit ? hyperplanes<T, true> : hyperplanes<T, false>;
  pass(d, threads, inner, square, p.two_norm.data(), p.cosh_r.data(), p.sinh_r.data(), c, limit ? *limit : T(0), out,
       excess, slope);
}

// sums: [K] for the norms, [K] for the offsets, [1] for c
template <typename T>
void hyperplane_layer_backward(Shape d, int threads, const T* grad, const T* out, const T* excess, const T* slope,
                               const T* square, const T* norm, const T* offset, T c, const T* limit, T* grad_inner,
                               T* grad_square, double* sums) {
  const int64_t K = d.channels;
  const Hyperplanes<T> p(K, norm, offset, c);
  std::vector<double> raw(static_cast<size_t>(3 * K + 1));
  auto pass = limit ? hyperplanes_backward<T, true> : hyperplanes_backward<T, false>;
  pass(d, threads, grad, out, excess, slope, square, p.two_norm.data(), p.inverse_norm.data(), p.cosh_r.data(),
       p.sinh_r.data(), c, limit ? *limit : T(0), grad_inner, grad_square, raw.data());
  const double root_c = std::sqrt(double(c)), reach = 0.5 * Format<T>::sinh_limit;
  sums[2 * K] = raw[3 * K] / c;
  for (int64_t k = 0; k < K; ++k) {
    sums[k] = 2 * raw[k];
    const bool within = offset && std::abs(2 * root_c * offset[k]) < reach;
    sums[K + k] = within ? 2 * root_c * (raw[K + k] * p.sinh_r[k] - raw[2 * K + k]) / p.cosh_r[k] : 0;
    if (offset) sums[2 * K] += sums[K + k] * offset[k] * 0.5 / c;
  }
}

// The point whose coordinates have these sums over the batch (midpoint.normalise_mean), and the derivative
inline double normalised(int64_t C, const double* sums, double* mean) {
  double s = 0;
  for (int64_t k = 0; k < C; ++k) s += sums[k] * sums[k];
  const double time = std::sqrt(1 + s), excess = std::max(sums[C] - s / (1 + time), 0.0);
  const double r = 1 / std::sqrt(1 + excess * (1 + sums[C] + time));
  for (int64_t k = 0; k < C; ++k) mean[k] = r * sums[k];
  return r;
}

// f(image) for all images
template <typename F> void for_images(Shape d, int threads, const F& f) {
  for_blocks({d.images, (d.channels * d.pixels + W - 1) / W, W}, threads, 0, nullptr,
             [&](int64_t b, int64_t, int64_t, double*) { f(b); });
}

// The points of a block of one image's pixels: what x is multiplied by, its derivatives, and the points' squared norms.
// These are of the points as they are rounded, or means of equal points would not lie on the hyperboloid.
template <typename T> struct Pixels {
  T factor[W], by_s[W], by_c[W];
  double square[W] = {};

  Pixels(Shape d, int64_t count, T root_c, bool tangent, const T* x) {
    T s[W] = {};
    for (int64_t k = 0; k < d.channels; ++k) {
      const T* x_k = x + k * d.pixels;
      SIMD for (int64_t i = 0; i < count; ++i) s[i] += x_k[i] * x_k[i];
    }
    shortcut_factor(count, root_c, tangent, s, factor, by_s, by_c);
    for (int64_t k = 0; k < d.channels; ++k) {
      const T* x_k = x + k * d.pixels;
      for (int64_t i = 0; i < count; ++i) {
        const T h = factor[i] * x_k[i];
        square[i] += double(h) * h;
      }
    }
  }
};

// Means of an image's points, and of their time parts minus one
template <typename T> std::vector<double> image_means(Shape d, T root_c, bool tangent, const T* x) {
  std::vector<double> sums(static_cast<size_t>(d.channels + 1), 0.0);
  for (int64_t first = 0; first < d.pixels; first += W) {
    const int64_t count = std::min(W, d.pixels - first);
    const Pixels<T> p(d, count, root_c, tangent, x + first);
    for (int64_t k = 0; k < d.channels; ++k) {
      const T* x_k = x + k * d.pixels + first;
      for (int64_t i = 0; i < count; ++i) {
        const T h = p.factor[i] * x_k[i];
        sums[k] += h;
      }
    }
    for (int64_t i = 0; i < count; ++i) sums[d.channels] += p.square[i] / (1 + std::sqrt(1 + p.square[i]));
  }
  for (double& v : sums) v /= double(d.pixels);
  return sums;
}

// The midpoint of each image's pixels [B, C] (pooling._midpoint)
template <typename T>
void midpoint(Shape d, int threads, const T* x, T c, bool from_tangent, bool to_tangent, T* out) {
  const int64_t C = d.channels;
  const T root_c = std::sqrt(c);
  for_images(d, threads, [=](int64_t b) {
    const std::vector<double> sums = image_means(d, root_c, from_tangent, x + b * C * d.pixels);
    std::vector<double> mean(static_cast<size_t>(C));
    normalised(C, sums.data(), mean.data());
    double s = 0;
    for (int64_t k = 0; k < C; ++k) s += mean[k] * mean[k];
    const double factor = to_tangent ? 0.5 / std::sqrt(double(c)) * asinhc(s, std::sqrt(1 + s)) : 1;
    for (int64_t k = 0; k < C; ++k) out[b * C + k] = T(factor * mean[k]);
  });
}

// by_c: [B]
template <typename T>
void midpoint_backward(Shape d, int threads, const T* grad, const T* x, T c, bool from_tangent, bool to_tangent,
                       T* grad_x, T* by_c) {
  const int64_t C = d.channels;
  const T root_c = std::sqrt(c);
  for_images(d, threads, [=](int64_t b) {
    const T *g = grad + b * C, *image = x + b * C * d.pixels;
    const std::vector<double> sums = image_means(d, root_c, from_tangent, image);
    std::vector<double> mean(static_cast<size_t>(C)), by_point(static_cast<size_t>(C));
    const double r = normalised(C, sums.data(), mean.data());
    double s_mean = 0, along = 0, total_c = 0, f = 1, f_s = 0, along_sum = 0;
    for (int64_t k = 0; k < C; ++k) {
      s_mean += mean[k] * mean[k];
      along += g[k] * mean[k];
    }
    if (to_tangent) {
      const double half = 0.5 / std::sqrt(double(c)), root = std::sqrt(1 + s_mean), value = asinhc(s_mean, root);
      f = half * value;
      f_s = half * asinhc_derivative(s_mean, value, root);
      total_c = -0.5 * f / c * along;
    }
    // the gradient for the mean, then those for the sums
    for (int64_t k = 0; k < C; ++k) {
      by_point[k] = f * g[k] + 2 * f_s * along * mean[k];
      along_sum += by_point[k] * sums[k];
    }
    along_sum *= r * r * r;
    for (int64_t k = 0; k < C; ++k) by_point[k] = (r * by_point[k] + along_sum * sums[k]) / double(d.pixels);
    const double by_excess = -along_sum * (1 + sums[C]) / double(d.pixels);
    for (int64_t first = 0; first < d.pixels; first += W) {
      const int64_t count = std::min(W, d.pixels - first);
      const T* x_b = image + first;
      const Pixels<T> p(d, count, root_c, from_tangent, x_b);
      double inner[W] = {}, by_h[W];
      for (int64_t k = 0; from_tangent && k < C; ++k)
        for (int64_t i = 0; i < count; ++i) inner[i] += by_point[k] * x_b[k * d.pixels + i];
      for (int64_t i = 0; i < count; ++i) {
        by_h[i] = by_excess * p.factor[i] / std::sqrt(1 + p.square[i]);  // in the gradient for the point
        if (!from_tangent) continue;
        const double e = p.factor[i], along_x = inner[i] + by_h[i] * p.square[i] / (e * e);
        by_h[i] += 2 * p.by_s[i] * along_x / e;
        total_c += p.by_c[i] * along_x;
      }
      for (int64_t k = 0; k < C; ++k) {
        T* out = grad_x + (b * C + k) * d.pixels + first;
        for (int64_t i = 0; i < count; ++i) out[i] = T(p.factor[i] * (by_point[k] + by_h[i] * x_b[k * d.pixels + i]));
      }
    }
    by_c[b] = T(total_c);
  });
}

template <typename T> std::vector<T> converted(const double* x, int64_t count) {
  std::vector<T> y(static_cast<size_t>(count));
  for (int64_t k = 0; k < count; ++k) y[k] = T(x[k]);
  return y;
}

// What a norm multiplies by and where it moves the mean, of parameters: if base_gain is not negative, logarithms of
// multiples of it; and a point of the ball
template <typename T> struct Affine {
  std::vector<T> gain, beta;

  Affine(int64_t C, const T* parameter, const T* center, double c, double base_gain, double cap)
      : gain(parameter, parameter + C), beta(static_cast<size_t>(C)) {
    if (base_gain >= 0)
      for (T& g : gain) g = T(base_gain * std::exp(double(g)));
    lift(C, center, c, cap, beta.data());
  }
};

// statistics: the batch's sums [C + 1] and variance [C], computed or given
template <typename T>
void batch_norm(Shape d, int threads, const T* h, const T* given_mean, const T* given_variance, const T* log_gain,
                const T* center, T c, T limit, double eps, bool tangent, bool relu, double base_gain, double cap, T* out,
                T* xi, T* log, T* statistics) {
  const int64_t C = d.channels;
  const Affine<T> affine(C, log_gain, center, c, base_gain, cap);
  const T *gain = affine.gain.data(), *beta = affine.beta.data();
  const double count = double(d.images) * double(d.pixels);
  std::vector<double> sums(static_cast<size_t>(C + 1)), mean(static_cast<size_t>(C));
  if (given_mean) {
    double s = 0;
    for (int64_t k = 0; k < C; ++k) s += (mean[k] = sums[k] = given_mean[k]) * given_mean[k];
    sums[C] = s / (1 + std::sqrt(1 + s));
  } else {
    mean_sums(d, threads, h, sums.data());
    for (double& s : sums) s /= count;
    normalised(C, sums.data(), mean.data());
  }
  for (int64_t k = 0; k <= C; ++k) statistics[k] = T(sums[k]);
  const std::vector<T> m = converted<T>(mean.data(), C);
  std::vector<double> variance(static_cast<size_t>(C));
  if (!given_variance) moments(d, threads, h, m.data(), c, xi, log, variance.data());
  std::vector<T> ratio(static_cast<size_t>(C));
  for (int64_t k = 0; k < C; ++k) {
    const double v = given_variance ? double(given_variance[k]) : variance[k] / count;
    statistics[C + 1 + k] = T(v);
    ratio[k] = T(gain[k] / std::sqrt(v + eps));
  }
  recentered(d, threads, h, m.data(), !given_variance, xi, log, ratio.data(), beta, c, limit, tangent, relu, out);
}

// sums: [C] each for the mean, the variance, the gain and the centre, [1] for c. `pixels` is scratch space [3, B, N].
template <typename T>
void batch_norm_backward(Shape d, int threads, const T* grad, const T* result, const T* h, const T* given_mean,
                         const T* given_variance, const T* log_gain, const T* center, T c, T limit, double eps,
                         bool tangent, double base_gain, double cap, const T* xi, const T* log, const T* batch_sums,
                         const T* batch_variance, T* grad_h, T* pixels, double* sums) {
  const int64_t C = d.channels;
  const Affine<T> affine(C, log_gain, center, c, base_gain, cap);
  const T *gain = affine.gain.data(), *beta = affine.beta.data();
  const double count = double(d.images) * double(d.pixels);
  std::vector<double> batch(batch_sums, batch_sums + C + 1), mean(batch.begin(), batch.end() - 1);
  double r = 1;
  if (!given_mean) r = normalised(C, batch.data(), mean.data());
  const std::vector<T> m = converted<T>(mean.data(), C);
  std::vector<T> ratio(static_cast<size_t>(C)), decay(static_cast<size_t>(C), T(0)), constant(static_cast<size_t>(C));
  std::vector<double> inverse(static_cast<size_t>(C)), first(static_cast<size_t>(2 * C + 2)),
      second(static_cast<size_t>(C + 2));
  for (int64_t k = 0; k < C; ++k) {
    inverse[k] = 1 / std::sqrt(batch_variance[k] + eps);
    ratio[k] = T(gain[k] * inverse[k]);
  }
  recenter_backward(d, threads, grad, result, h, m.data(), xi, log, ratio.data(), beta, c, limit, tangent, grad_h,
                    first.data());
  for (int64_t k = 0; k < C; ++k) {
    const double by_variance = -0.5 * gain[k] * inverse[k] * inverse[k] * inverse[k] * first[k];
    sums[C + k] = by_variance;
    sums[2 * C + k] = inverse[k] * first[k];
    sums[3 * C + k] = first[C + k];
    if (!given_variance) decay[k] = T(2 / count * by_variance);
  }
  T *by_h = pixels, *by_m = by_h + d.images * d.pixels, *inverse_time = by_m + d.images * d.pixels;
  center_backward(d, threads, grad_h, h, m.data(), xi, log, ratio.data(), decay.data(), c, by_h, by_m, inverse_time,
                  second.data());
  sums[4 * C] = first[2 * C + 1] - 0.5 / c * second[C];
  T to_excess = 0;
  if (!given_mean) {
    double along = 0;
    for (int64_t k = 0; k < C; ++k) along += second[k] / count * batch[k];
    along *= r * r * r;
    for (int64_t k = 0; k < C; ++k) constant[k] = T(r * second[k] / count + along * batch[k]);
    to_excess = T(-along * (1 + batch[C]));
  }
  for (int64_t k = 0; k < C; ++k) sums[k] = second[k];
  if (base_gain >= 0)
    for (int64_t k = 0; k < C; ++k) sums[2 * C + k] *= gain[k];
  std::vector<T> grad_center = converted<T>(sums + 3 * C, C);
  double by_c = 0;
  lift_backward(C, grad_center.data(), center, c, cap, grad_center.data(), &by_c);
  std::copy(grad_center.begin(), grad_center.end(), sums + 3 * C);
  sums[4 * C] += by_c;
  input_backward(d, threads, grad_h, h, m.data(), xi, log, ratio.data(), decay.data(), by_h, by_m, inverse_time,
                 constant.data(), to_excess, grad_h);
}

// Steps of optimizers on points of a ball, the rows of parameters: manifold_resnet.optim's Rows, one row at a time.
// Sums and numbers per row are doubles.
struct Ball {
  double c, reach;  // points stay within this norm
  int exact;        // step along geodesics rather than add and project
};

template <typename T> inline double dot(int64_t n, const T* a, const T* b) {
  T sum = 0;
  _Pragma("omp simd reduction(+ : sum)") for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

template <typename T> inline void scale(int64_t n, double factor, T* x) {
  for (int64_t i = 0; i < n; ++i) x[i] *= T(factor);
}

// Move a point inside the ball; its squared norm
template <typename T> inline double project(const Ball& ball, int64_t n, T* x) {
  const double s = dot(n, x, x);
  if (!(std::sqrt(s) > ball.reach)) return s;
  scale(n, ball.reach / std::sqrt(s), x);
  return dot(n, x, x);
}

// Move x by d (after moving it towards the origin by a share of its distance), and carry m, which may be missing
template <typename T> void move(const Ball& ball, int64_t n, double share, T* x, double s, T* d, T* m) {
  const double c = ball.c;
  double half = 0.5 * (1 - c * s);
  if (share != 0 && s > 0) {
    const double t = std::sqrt(c * s);
    scale(n, t > 0 ? std::tanh((1 - share) * std::atanh(t)) / t : 1 - share, x);
    s = dot(n, x, x);
    const double after = 0.5 * (1 - c * s);
    scale(n, after / half, d);
    if (m) scale(n, after / half, m);
    half = after;
  }
  double by_x = 1, by_d = 1;
  if (ball.exact) {
    const double u2 = dot(n, d, d), t = std::sqrt(c * u2) * (0.5 / half), w = (t > 0 ? std::tanh(t) / t : 1) * (0.5 / half);
    const double xw = w * dot(n, x, d), w2 = w * w * u2, r = 1 / std::max(1 + 2 * c * xw + c * c * s * w2, 1e-30);
    by_x = r * (1 + 2 * c * xw + c * w2);
    by_d = r * w * (1 - c * s);
  }
  for (int64_t i = 0; i < n; ++i) d[i] = T(by_x) * x[i] + T(by_d) * d[i];
  const double y2 = project(ball, n, d);
  if (m) {  // gyr[y, -x] m lambda_x / lambda_y
    const double xy = dot(n, x, d), xm = dot(n, x, m), ym = dot(n, d, m);
    const double ratio = 0.5 * (1 - c * y2) / half, r = 2 / std::max(1 - 2 * c * xy + c * c * s * y2, 1e-30);
    const T by_y = T(ratio * r * c * (c * (2 * xy * xm - ym * s) - xm)), by_point = T(ratio * r * c * (ym - c * xm * y2));
    for (int64_t i = 0; i < n; ++i) m[i] = T(ratio) * m[i] + by_y * d[i] + by_point * x[i];
  }
  std::copy(d, d + n, x);
}

// f(parameter, first element of a row) for all rows of parameters
template <typename F> void each_row(int64_t parameters, int64_t n, const int64_t* rows, int threads, const F& f) {
  std::vector<int64_t> ends(static_cast<size_t>(parameters));
  int64_t total = 0;
  for (int64_t p = 0; p < parameters; ++p) ends[static_cast<size_t>(p)] = total += rows[p];
  if (total * n < 16384) threads = 1;
  (void)threads;
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) if (threads > 1)
#endif
  for (int64_t row = 0; row < total; ++row) {
    const int64_t p = std::upper_bound(ends.begin(), ends.end(), row) - ends.begin();
    f(p, (row - ends[static_cast<size_t>(p)] + rows[p]) * n);
  }
}

struct Adam {
  double lr, beta1, beta2, eps, decay, share, factor;  // share: decoupled weight decay; factor: of the gradients
  int by_coordinate;
};

template <typename T>
void adam_row(const Ball& ball, const Adam& a, int64_t n, T* x, const T* grad, T* m, T* v, T* largest, double first,
              double second) {
  std::vector<T> step(static_cast<size_t>(n));
  T* d = step.data();
  const double s = project(ball, n, x), half = 0.5 * (1 - ball.c * s);
  for (int64_t i = 0; i < n; ++i) d[i] = T(half * half) * (T(a.factor) * grad[i] + T(a.decay) * x[i]);
  for (int64_t i = 0; i < n; ++i) m[i] = T(a.beta1) * m[i] + T(1 - a.beta1) * d[i];
  const T square = T((1 - a.beta2) * (a.by_coordinate ? double(n) : dot(n, d, d)) / (half * half));
  for (int64_t i = 0; i < n; ++i) v[i] = T(a.beta2) * v[i] + square * (a.by_coordinate ? d[i] * d[i] : T(1));
  if (largest) {
    for (int64_t i = 0; i < n; ++i) largest[i] = std::max(largest[i], v[i]);
    v = largest;
  }
  const T by_m = T(-a.lr / first), by_v = T(1 / second);
  for (int64_t i = 0; i < n; ++i) d[i] = by_m * m[i] / (std::sqrt(v[i] * by_v) + T(a.eps));
  move(ball, n, a.share, x, s, d, m);
}

struct Descent {
  double lr, momentum, dampening, decay, share, factor;
  int nesterov;
};

template <typename T>
void sgd_row(const Ball& ball, const Descent& a, int64_t n, T* x, const T* grad, T* m) {
  std::vector<T> step(static_cast<size_t>(n));
  T* d = step.data();
  const double s = project(ball, n, x), half = 0.5 * (1 - ball.c * s);
  for (int64_t i = 0; i < n; ++i) d[i] = T(half * half) * (T(a.factor) * grad[i] + T(a.decay) * x[i]);
  if (m) {
    for (int64_t i = 0; i < n; ++i) m[i] = T(a.momentum) * m[i] + T(1 - a.dampening) * d[i];
    for (int64_t i = 0; i < n; ++i) d[i] = a.nesterov ? d[i] + T(a.momentum) * m[i] : m[i];
  }
  scale(n, -a.lr, d);
  move(ball, n, a.share, x, s, d, m);
}

}  // namespace

#define SHAPE                                                                                          \
  [[maybe_unused]] int64_t images, [[maybe_unused]] int64_t channels, [[maybe_unused]] int64_t pixels, \
      [[maybe_unused]] int64_t threads
#define DIMS {images, channels, pixels}, int(threads)

#define WINDOW                                                                                                   \
  int64_t height, int64_t width, int64_t out_height, int64_t out_width, int64_t kh, int64_t kw, int64_t sh,       \
      int64_t sw, int64_t ph, int64_t pw, int64_t dh, int64_t dw
#define WINDOW_OF {height, width, out_height, out_width, kh, kw, sh, sw, ph, pw, dh, dw}

// Sums are doubles; what goes out when they are complete is not.
template <typename T> class Sums {
 public:
  Sums(int64_t count, T* out) : sums_(static_cast<size_t>(count)), out_(out) {}
  ~Sums() { std::copy(sums_.begin(), sums_.end(), out_); }
  operator double*() { return sums_.data(); }

 private:
  std::vector<double> sums_;
  T* out_;
};

#define EXPORT(T, SUFFIX)                                                                                          \
  extern "C" void directions_##SUFFIX(SHAPE, const T* weight, const T* c, double scale, double factor, T* out,     \
                                      T* norm) {                                                                   \
    directions<T>(images, channels * pixels, weight, *c, scale, factor, out, norm);                                \
  }                                                                                                                \
  extern "C" void directions_backward_##SUFFIX(SHAPE, const T* grad, const T* grad_norm, const T* weight,          \
                                               const T* c, double scale, double factor, T* out, T* by_c) {         \
    directions_backward<T>(images, channels * pixels, grad, grad_norm, weight, *c, scale, factor, out, Sums<T>(1, by_c));\
  }                                                                                                                \
  extern "C" void lift_##SUFFIX(SHAPE, const T* x, const T* c, double cap, T* out) {                               \
    lift<T>(channels, x, *c, cap, out);                                                                            \
  }                                                                                                                \
  extern "C" void lift_backward_##SUFFIX(SHAPE, const T* grad, const T* x, const T* c, double cap, T* out,         \
                                         T* by_c) {                                                                \
    lift_backward<T>(channels, grad, x, *c, cap, out, Sums<T>(1, by_c));                                           \
  }                                                                                                                \
  extern "C" void convolution_inputs_##SUFFIX(SHAPE, const T* v, const T* weight, int64_t rows, const T* c,        \
                                              double scale, double factor, WINDOW, T* scratch, T* normals, T* norm,\
                                              T* sq) {                                                             \
    directions<T>(rows, channels * kh * kw, weight, *c, scale, factor, normals, norm);                             \
    window_squares<T>(DIMS, v, WINDOW_OF, T(factor * factor), scratch, sq);                                        \
  }                                                                                                                \
  extern "C" void convolution_gradients_##SUFFIX(SHAPE, const T* grad_normals, const T* grad_norm,                 \
                                                 const T* grad_square, const T* v, const T* weight, int64_t rows,  \
                                                 const T* c, double scale, double factor, WINDOW, T* grad_v,       \
                                                 T* grad_weight, T* by_c) {                                        \
    if (grad_v) window_squares_backward<T>(DIMS, grad_square, v, WINDOW_OF, T(factor * factor), grad_v);           \
    if (grad_weight)                                                                                               \
      directions_backward<T>(rows, channels * kh * kw, grad_normals, grad_norm, weight, *c, scale, factor,         \
                             grad_weight, Sums<T>(1, by_c));                                                       \
  }                                                                                                                \
  extern "C" void hyperplanes_##SUFFIX(SHAPE, const T* inner, const T* sq, const T* norm, const T* offset,         \
                                       const T* c, const T* limit, T* out, T* excess, T* slope) {                  \
    hyperplane_layer<T>(DIMS, inner, sq, norm, offset, *c, limit, out, excess, slope);                             \
  }                                                                                                                \
  extern "C" void hyperplanes_backward_##SUFFIX(SHAPE, const T* grad, const T* h, const T* excess, const T* slope, \
                                                const T* sq, const T* norm, const T* offset, const T* c,           \
                                                const T* limit, T* grad_inner, T* grad_square, T* sums) {          \
    hyperplane_layer_backward<T>(DIMS, grad, h, excess, slope, sq, norm, offset, *c, limit, grad_inner,            \
                                 grad_square, Sums<T>(2 * channels + 1, sums));                                    \
  }                                                                                                                \
  extern "C" void midpoint_##SUFFIX(SHAPE, const T* x, const T* c, int64_t from_tangent, int64_t to_tangent, T* out) {\
    midpoint<T>(DIMS, x, *c, from_tangent, to_tangent, out);                                                          \
  }                                                                                                                   \
  extern "C" void midpoint_backward_##SUFFIX(SHAPE, const T* grad, const T* x, const T* c, int64_t from_tangent,      \
                                             int64_t to_tangent, T* grad_x, T* by_c) {                                \
    midpoint_backward<T>(DIMS, grad, x, *c, from_tangent, to_tangent, grad_x, by_c);                                  \
  }                                                                                                                   \
  extern "C" void batch_norm_##SUFFIX(SHAPE, const T* h, const T* mean, const T* variance, const T* gain,          \
                                      const T* center, const T* c, const T* limit, double eps, int64_t tangent,    \
                                      int64_t relu, double base_gain, double cap, T* out, T* xi, T* log,           \
                                      T* statistics) {                                                             \
    batch_norm<T>(DIMS, h, mean, variance, gain, center, *c, *limit, eps, tangent, relu, base_gain, cap, out, xi,  \
                  log, statistics);                                                                                \
  }                                                                                                                \
  extern "C" void batch_norm_backward_##SUFFIX(SHAPE, const T* grad, const T* result, const T* h, const T* mean,   \
                                               const T* variance, const T* gain, const T* center, const T* c,      \
                                               const T* limit, double eps, int64_t tangent, double base_gain,      \
                                               double cap, const T* xi, const T* log, const T* batch_sums,         \
                                               const T* batch_variance, T* grad_h, T* scratch, T* sums) {          \
    batch_norm_backward<T>(DIMS, grad, result, h, mean, variance, gain, center, *c, *limit, eps, tangent, base_gain,\
                           cap, xi, log, batch_sums, batch_variance, grad_h, scratch, Sums<T>(4 * channels + 1, sums));\
  }                                                                                                                \
  extern "C" void residual_##SUFFIX(SHAPE, const T* x, const T* r, const T* c, const T* limit, int64_t x_first,    \
                                    int64_t r_tangent, int64_t tangent, int64_t relu, T* out) {                    \
    residual<T>(DIMS, x, r, *c, *limit, x_first, r_tangent, tangent, relu, out);                                   \
  }                                                                                                                \
  extern "C" void residual_backward_##SUFFIX(SHAPE, const T* grad, const T* result, const T* x, const T* r,        \
                                             const T* c, const T* limit, int64_t x_first, int64_t r_tangent, int64_t tangent,\
                                             T* grad_x, T* grad_r, T* sums) {                                      \
    residual_backward<T>(DIMS, grad, result, x, r, *c, *limit, x_first, r_tangent, tangent, grad_x, grad_r, Sums<T>(1, sums));\
  }


// images: parameters, pixels: the length of rows; rows: how many each parameter has
#define EXPORT_STEPS(T, SUFFIX)                                                                                    \
  extern "C" void adam_##SUFFIX(SHAPE, double c, double reach, int64_t exact, double lr, double beta1, double beta2,   \
                                double eps, double decay, double share, double factor, int64_t by_coordinate,          \
                                const int64_t* rows, T* const* x, const T* const* grad, T* const* m, T* const* v,  \
                                T* const* largest, const double* first, const double* second) {                    \
    const Ball ball{c, reach, exact != 0};                                                                              \
    const Adam a{lr, beta1, beta2, eps, decay, share, factor, by_coordinate != 0};                                      \
    each_row(images, pixels, rows, threads, [&](int64_t p, int64_t i) {                                            \
      adam_row<T>(ball, a, pixels, x[p] + i, grad[p] + i, m[p] + i, v[p] + i, largest ? largest[p] + i : nullptr,  \
                  first[p], second[p]);                                                                            \
    });                                                                                                            \
  }                                                                                                                \
  extern "C" void sgd_##SUFFIX(SHAPE, double c, double reach, int64_t exact, double lr, double momentum,               \
                               double dampening, double decay, double share, double factor, int64_t nesterov,          \
                               const int64_t* rows, T* const* x, const T* const* grad, T* const* m) {              \
    const Ball ball{c, reach, exact != 0};                                                                              \
    const Descent a{lr, momentum, dampening, decay, share, factor, nesterov != 0};                                      \
    each_row(images, pixels, rows, threads, [&](int64_t p, int64_t i) {                                            \
      sgd_row<T>(ball, a, pixels, x[p] + i, grad[p] + i, m ? m[p] + i : nullptr);                                  \
    });                                                                                                            \
  }

EXPORT(float, float32)
EXPORT(double, float64)
EXPORT_STEPS(float, float32)
EXPORT_STEPS(double, float64)
