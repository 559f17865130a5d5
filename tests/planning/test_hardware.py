import pytest

from train.errors import HostfileError, PlanError
from train.planning import cluster_of, find_gpu

HOSTS = [("node1", 4), ("node2", 4)]


def test_an_unknown_gpu_gets_the_nearest_name():
    with pytest.raises(PlanError, match=r"no GPU 'A100-SXN-80' .*|no GPU"):
        find_gpu("Radeon 9")
    with pytest.raises(PlanError, match="did you mean 'MI300X'"):
        find_gpu("MI30OX")


def test_a_device_is_planned_with_the_memory_that_was_found_on_it():
    assert find_gpu("NVIDIA H200", 100e9).memory == 100e9
    assert find_gpu("cpu", 4e9).is_cpu
    with pytest.raises(PlanError, match="memory"):
        find_gpu("cpu")


def test_a_nic_is_one_of_each_card_unless_counted():
    a100 = find_gpu("A100-SXM-80GB")
    assert cluster_of(HOSTS, {"nic": "200Gb"}, a100).nic == 4 * 25e9
    assert cluster_of(HOSTS, {"nic": "2x200Gb"}, a100).nic == 2 * 25e9
    assert cluster_of([("a", 8)], {"nic": "200Gb"}, find_gpu("MI250")).nic == 4 * 25e9
    assert cluster_of(HOSTS, {}, a100).nic == 4 * a100.nic


def test_a_hosts_words_replace_the_tables_figures():
    words = {"link": "50GB", "memory": "40GiB", "host_memory": "1TB", "gpu": "ignored"}
    cluster = cluster_of(HOSTS, words, find_gpu("A100-SXM-80GB"))
    assert (cluster.gpu.link, cluster.gpu.memory, cluster.host_memory) == (50e9, 40 * 2**30, 1e12)


def test_malformed_words_are_refused():
    gpu = find_gpu("H100-SXM")
    with pytest.raises(HostfileError, match="'nic=fast' .*write for example nic="):
        cluster_of(HOSTS, {"nic": "fast"}, gpu)
    with pytest.raises(HostfileError, match="did you mean 'nic'"):
        cluster_of(HOSTS, {"nics": "200Gb"}, gpu)
    with pytest.raises(PlanError, match="at least one GPU"):
        cluster_of([], {}, gpu)
