"""Launchers start themselves again with huge pages, once, where there are any."""

import pytest

from amortjax.launch.huge_pages import wanted

KERNEL = "always [madvise] never"


@pytest.mark.parametrize(
    ("environ", "libc", "kernel", "want"),
    [
        ({}, ("glibc", "2.36"), KERNEL, "glibc.malloc.hugetlb=1"),
        (
            {"GLIBC_TUNABLES": "glibc.rtld.nns=2"},
            ("glibc", "2.41"),
            KERNEL,
            "glibc.rtld.nns=2:glibc.malloc.hugetlb=1",
        ),
        ({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}, ("glibc", "2.36"), KERNEL, None),  # the user's word
        ({}, ("glibc", "2.31"), KERNEL, None),
        ({}, ("", ""), KERNEL, None),
        ({}, ("glibc", "2.36"), "always madvise [never]", None),
    ],
)
def test_wanted(environ, libc, kernel, want):
    assert wanted(environ, libc, kernel) == want
    if want:
        assert wanted({"GLIBC_TUNABLES": want}, libc, kernel) is None  # no second time
