// What the kernels use of CUDA's header of this name, for a host compiler.
#pragma once

typedef _Float16 __half;

struct __half2 {
    __half x, y;
};

struct float2 {
    float x, y;
};

struct double2 {
    double x, y;
};

inline float2 __half22float2(__half2 v) { return {static_cast<float>(v.x), static_cast<float>(v.y)}; }
inline __half __double2half(double v) { return static_cast<__half>(v); }
inline float __half2float(__half v) { return static_cast<float>(v); }
