/* Functions that glibc gave a new version after GLIBC_2.34, for programs that are to run on clusters with that one (RHEL 9 and its
   rebuilds): linked into the wheel's programs, in place of the library's. */

#define HIDDEN __attribute__((visibility("hidden")))

/* As in glibc 2.35, without its errno. */
HIDDEN float hypotf(float x, float y)
{
    if (__builtin_isinf(x) || __builtin_isinf(y))
        return __builtin_inff();
    double wide_x = x, wide_y = y;
    return (float)__builtin_sqrt(wide_x * wide_x + wide_y * wide_y);
}
