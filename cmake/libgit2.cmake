# libgit2 reads git repositories for `turbokv gate --llama-cpp`; everything else does without it. Sets
# TKV_HAVE_LIBGIT2; its target is PkgConfig::GIT2.
set(TKV_LIBGIT2 AUTO CACHE STRING "read git repositories with libgit2: ON, OFF or AUTO (if it is found)")
set_property(CACHE TKV_LIBGIT2 PROPERTY STRINGS AUTO ON OFF)
set(TKV_HAVE_LIBGIT2 OFF)

find_package(PkgConfig REQUIRED)
if(TKV_LIBGIT2 STREQUAL AUTO)
    pkg_check_modules(GIT2 QUIET IMPORTED_TARGET libgit2)
elseif(TKV_LIBGIT2)
    pkg_check_modules(GIT2 REQUIRED IMPORTED_TARGET libgit2)
endif()
if(TKV_LIBGIT2 AND GIT2_FOUND)
    set(TKV_HAVE_LIBGIT2 ON)
else()
    message(STATUS "libgit2: not built in, so `gate --llama-cpp` reads no git repositories "
                   "(scripts/install-dependencies git installs it)")
endif()
