"""What `kdns migrate` says of the lines of a Corefile."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kdns.corefile.config import Directive
from kdns.corefile.lexer import Token
from kdns.corefile.parser import parse_text
from kdns.errors import KdnsError
from kdns.plugins import MANUALS, MODULES, ORDER, absent, load
from kdns.tools import differences
from kdns.tools.corefiles import Finding, Judgement, Source, Verdict, judge, without
from tests.support.node import NODE_LOCAL
from tests.test_corefiles_of_clusters import KUBEADM, OF_COREDNS

MINIKUBE = """\
.:53 {
    log
    errors
    health {
       lameduck 5s
    }
    ready
    kubernetes cluster.local in-addr.arpa ip6.arpa {
       pods insecure
       fallthrough in-addr.arpa ip6.arpa
       ttl 30
    }
    prometheus :9153
    hosts {
       192.168.49.1 host.minikube.internal
       fallthrough
    }
    forward . /etc/resolv.conf {
       max_concurrent 1000
    }
    cache 30
    loop
    reload
    loadbalance
}
"""
OPENSHIFT = """\
# Managed by the DNS operator
corp.example:5353 {
    prometheus 127.0.0.1:9153
    forward . 10.0.0.53:5353 {
        policy random
    }
    errors
    log . {
        class error
    }
    bufsize 1232
    cache 900 {
        denial 9984 30
    }
}
.:5353 {
    bufsize 1232
    errors
    log . {
        class error
    }
    health {
        lameduck 20s
    }
    ready
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
    }
    prometheus 127.0.0.1:9153
    forward . /etc/resolv.conf {
        policy sequential
    }
    cache 900 {
        denial 9984 30
    }
    reload
}
hostname.bind:5353 {
    chaos
}
"""
GKE = """\
cluster.local:53 in-addr.arpa:53 ip6.arpa:53 {
    errors
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
        ttl 30
    }
    cache {
        success 9984 30
        denial 9984 5
    }
    prometheus :9153
}
.:53 {
    errors
    health :8080 {
        lameduck 5s
    }
    ready
    prometheus :9153
    forward . 169.254.169.254 {
        max_concurrent 1000
        health_check 5s
    }
    cache 30
    loop
    reload
}
"""
RKE2 = """\
.:53 {
    errors 
    health  {
        lameduck 10s
    }
    ready 
    kubernetes   cluster.local  cluster.local in-addr.arpa ip6.arpa {
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
        ttl 30
    }
    prometheus   0.0.0.0:9153
    forward   . /etc/resolv.conf
    cache   30
    loop 
    reload 
    loadbalance 
}
"""  # noqa: W291


def one(text: str, *others: Source, **environ: str) -> Judgement:
    """What becomes of a Corefile, `Corefile` in messages."""
    return judge([Source("/etc/coredns/Corefile", text, "Corefile"), *others], environ)


def line(findings: tuple[Finding, ...], number: int, file: str = "Corefile") -> Finding:
    (found,) = [each for each in findings if each.where == f"{file}:{number}"]
    return found


@pytest.mark.parametrize("text", [KUBEADM, MINIKUBE, OPENSHIFT, GKE, RKE2])
def test_corefiles_of_distributions_work(text: str, tmp_path: Path) -> None:
    found = one(text)
    assert found.config is not None
    assert {each.verdict for each in found.findings} == {Verdict.UNCHANGED, Verdict.DIFFERS}
    told = {int(each.where.rsplit(":", 1)[1]): each.what for each in found.findings}
    lines = {number: content.strip() for number, content in enumerate(text.splitlines(), 1)}
    assert told == {
        number: content for number, content in lines.items() if content and content not in "}" and content[0] != "#"
    }
    for each in found.findings:
        assert bool(each.why) == (each.verdict is Verdict.DIFFERS)


def test_a_base_file_of_a_node_works() -> None:
    source = Source("/etc/coredns/Corefile.base", NODE_LOCAL, "base")
    found = judge([source], {}, node=True)
    assert found.config is not None
    assert line(found.findings, 1, "base").what == "__PILLAR__DNS__DOMAIN__:53 {"
    assert {each.verdict for each in found.findings} == {Verdict.UNCHANGED, Verdict.DIFFERS}


def test_a_node_has_no_kubernetes() -> None:
    source = Source("/etc/coredns/Corefile.base", ".:53 {\n    kubernetes cluster.local\n}\n", "base")
    found = judge([source], {}, node=True)
    assert line(found.findings, 2, "base").verdict is Verdict.UNSUPPORTED
    assert judge([source], {}).config is not None


@pytest.mark.parametrize("name", OF_COREDNS)
def test_every_directive_of_coredns_has_a_verdict(name: str) -> None:
    found = one(f".:53 {{\n    {name}\n    loop\n}}\n" if name != "loop" else ".:53 {\n    loop\n    reload\n}\n")
    mine = line(found.findings, 2)
    if name in MANUALS:
        assert all("is not supported" not in why for why in mine.why)
    else:
        assert mine.verdict is Verdict.UNSUPPORTED
        assert mine.why == (f"{name} is not supported by this version of kdns; instead: {absent.INSTEAD[name]}",)
    assert line(found.findings, 3).verdict is Verdict.DIFFERS, "the others are told all the same"


def test_what_to_do_instead_is_there_for_what_is_missing_only() -> None:
    assert set(absent.INSTEAD) == (set(OF_COREDNS) | set(ORDER)) - set(MANUALS)


@pytest.mark.parametrize("name", sorted(MANUALS))
def test_every_sentence_of_a_manual_is_known_to_matter_or_not(name: str) -> None:
    """A sentence that is new has to be looked at: when does it matter to somebody who comes from CoreDNS?"""
    known = differences.WHEN.get(name, {})
    for sentence in differences.sentences(name):
        starts = [start for start in known if sentence.startswith(start)]
        assert len(starts) == 1, sentence
    for start in known:
        assert any(sentence.startswith(start) for sentence in differences.sentences(name)), start


def told(text: str) -> list[str]:
    """The sentences about a directive, by their first two words."""
    block = parse_text(f". {{\n{text}\n}}", "Corefile", {}, 53).blocks[0]
    return [" ".join(note.text.split()[:2]) for directive in block.directives for note in differences.notes(directive)]


@pytest.mark.parametrize(
    ("text", "sentence", "there"),
    [
        ("forward . 1.1.1.1", "A name", False),
        ("forward . 1.1.1.1:53 [2001:db8::1]:53 tls://9.9.9.9 /etc/resolv.conf", "A name", False),
        ("forward . dns.example", "A name", True),
        ("forward . tls://dns.example", "With `tls://`", True),
        ("forward . tls://9.9.9.9", "With `tls://`", False),
        ("forward 10.0.0.0/8 1.1.1.1", "All reverse", True),
        ("forward example.org 1.1.1.1", "All reverse", False),
        ("forward . 1.1.1.1 {\nmax_concurrent 5\n}", "`max_concurrent` counts", True),
        ("cache 30", "A failure", False),
        ("cache 30 {\nserve_stale\n}", "A failure", True),
        ("cache {\nsuccess 5000\n}", "**CAPACITY** is", True),
        ("errors {\nconsolidate 5m x\n}", "An expression", False),
        ("log", "`{rsize}` is", True),
        ('log . "{remote}"', "`{rsize}` is", False),
        ('log "{remote}"', "A single", True),
        ('log . "{remote}"', "A single", False),
        ("hosts {\n10.0.0.1 a.example\n}", "A name", True),
        ("hosts /etc/hosts", "A name", True),  # the one about wildcards
        ("header {\nquery set aa\n}", "In a", True),
        ("header {\nresponse set aa\n}", "In a", False),
        ("timeouts {\nread 5s\n}", "The default", False),
        ("timeouts {\nidle 5s\n}", "The default", True),
        ("chaos", "The default", True),
        ("chaos one two", "The default", False),
        ("kubernetes cluster.local {\napiserver_qps 5\n}", "`apiserver_qps` and", True),
        ("kubernetes cluster.local", "`apiserver_qps` and", False),
        ("health", "Written twice", False),
        ("any", "None.", False),
        ("template IN A {\nanswer {{.Name}}\n}", "Of `printf`,", False),
        ("template IN A {\nanswer {{printf}}\n}", "Of `printf`,", True),
        ("template IN A {\nanswer a{{.Name}}\n}", "An alias", False),
        ("template IN A {\nauthority a\nanswer CNAME\n}", "An alias", True),
        ("template IN A {\nederror 15\n}", "The extended", True),
        ("template IN A {\nrcode NXDOMAIN\n}", "The extended", False),
        ("loadbalance weighted /dev/null", "With `weighted`,", True),
        ("loadbalance", "With `weighted`,", False),
        ("erratic {\ndrop\n}", "`drop` without", True),
        ("erratic", "`drop` without", False),
        ("dns64 64:ff9b::/96 {\nallow_ipv4\n}", "Behind a", True),
        ("dns64 {\nprefix 64:ff9b::/96\n}", "Behind a", False),
        ("dns64 64:ff9b::/96", "Behind a", False),
    ],
)
def test_a_difference_is_told_where_it_matters(text: str, sentence: str, there: bool) -> None:
    assert (sentence in told(text)) == there


def test_a_directive_that_is_none_has_no_notes() -> None:
    assert list(differences.notes(Directive(Token("nonsense", "Corefile", 1)))) == []
    assert set(differences.WHEN) <= set(MODULES) | {"import"}


# Files of the pod

CUSTOM = "/etc/coredns/custom"


@pytest.mark.parametrize("pattern", ["custom/*.override", f"{CUSTOM}/*.override", '"custom/*.override"'])
def test_what_is_imported_is_looked_at_too(pattern: str) -> None:
    text = f".:53 {{\n    import {pattern}\n    whoami\n}}\n"
    others = [
        Source(f"{CUSTOM}/a.override", "log\ngeoip /geo.mmdb\n", "custom.yaml", 20),
        Source(f"{CUSTOM}/b.server", "nonsense\n", "custom.yaml", 30),
    ]
    found = one(text, *others)
    assert line(found.findings, 2).verdict is Verdict.UNCHANGED
    assert line(found.findings, 20, "custom.yaml").verdict is Verdict.DIFFERS
    assert line(found.findings, 21, "custom.yaml").verdict is Verdict.UNSUPPORTED
    assert not [each for each in found.findings if each.where == "custom.yaml:30"], "nobody imports it"
    assert found.read == {"/etc/coredns/Corefile", f"{CUSTOM}/a.override"}


def test_an_import_that_finds_nothing_is_told_as_the_pod_would_see_it() -> None:
    found = one(".:53 {\n    import /etc/coredns/more\n    whoami\n}\n")
    mine = line(found.findings, 2)
    assert mine.verdict is Verdict.UNSUPPORTED
    assert mine.why[0].startswith('import: "/etc/coredns/more" cannot be read')


def test_files_that_are_not_here_are_taken_as_they_are() -> None:
    text = ".:53 {\n    forward . /run/pod/resolv.conf {\n        tls /run/pod/ca.pem\n    }\n}\n"
    found = one(text)
    assert found.config is not None
    assert line(found.findings, 3) == Finding(
        "Corefile:3", Verdict.DIFFERS, "tls /run/pod/ca.pem", ("The files are not looked at here.",)
    )


def test_files_that_arguments_and_variables_name_are_not_those_of_this_machine() -> None:
    text = "(up) {\n    forward {args[0]} {args[1]}\n}\n.:53 {\n    import up . /run/pod/resolv.conf\n}\n"
    assert one(text).config is not None
    found = one(
        ".:53 {\n    forward . {$UPSTREAM}\n    import {$MORE}/*\n}\n", UPSTREAM="/run/pod/a", MORE="/run/pod/b"
    )
    assert found.config is not None


def test_variables_are_those_of_the_container() -> None:
    text = "{$ZONE}:53 {\n    forward . {$UPSTREAM}\n}\n"
    assert one(text, ZONE="example.org", UPSTREAM="10.0.0.1").config is not None
    assert line(one(text, ZONE="example.org", UPSTREAM="10.0.0.").findings, 2).verdict is Verdict.UNSUPPORTED


def test_snippets_are_told_once_and_at_their_own_lines() -> None:
    text = (
        "(common) {\n    errors\n    trace\n}\n.:53 {\n    import common\n}\nexample.org:53 {\n    import common\n}\n"
    )
    found = one(text)
    assert [each.where for each in found.findings] == [f"Corefile:{number}" for number in (1, 2, 3, 5, 6, 8, 9)]
    assert line(found.findings, 3).verdict is Verdict.UNSUPPORTED


def test_the_same_sentences_are_not_told_again() -> None:
    found = one("a.example {\n    reload\n}\nb.example {\n    reload\n}\n")
    assert line(found.findings, 5).why == ("As in Corefile:2.",)
    assert line(found.findings, 2).why != ()


# Without what is not supported


def test_a_block_in_one_line_goes_as_a_whole() -> None:
    found = cut(".:53 {\n    whoami\n    forward . 1.1.1.1 { nonsense }\n}\n")
    assert found.splitlines()[2:] == [
        '    # not supported by kdns: forward has no option "nonsense"', "    # forward . 1.1.1.1 { nonsense }", "}",
    ]  # fmt: skip


def cut(text: str) -> str:
    (source,) = without([Source("/etc/coredns/Corefile", text, "Corefile")], {})
    return source.text


def test_a_corefile_that_works_stays_byte_for_byte() -> None:
    for text in (KUBEADM, RKE2, ".:53 {\r\n\twhoami   # x\r\n}", "whoami.example {\n  whoami\n}\n\n"):
        assert cut(text) == text


def test_what_is_not_supported_is_commented_out_with_the_reason(tmp_path: Path) -> None:
    text = """\
.:53 {
    errors
    etcd internal.example {
      path /skydns
      endpoint http://localhost:2379
    }
    forward . 10.0.0.1 {
        max_concurrent 10
        nonsense 3
    }
    sign example.org
}
zone.example:53 {
    geoip /geo.mmdb
    dnssec
}
grpc://other.example {
    whoami
}
"""
    found = cut(text)
    assert (
        found
        == """\
.:53 {
    errors
    # not supported by kdns: etcd is not supported by this version of kdns
    # etcd internal.example {
    #   path /skydns
    #   endpoint http://localhost:2379
    # }
    forward . 10.0.0.1 {
        max_concurrent 10
        # not supported by kdns: forward has no option "nonsense"
        # nonsense 3
    }
    # not supported by kdns: sign is not supported by this version of kdns
    # sign example.org
}
# not supported by kdns: dnssec is not supported by this version of kdns
# zone.example:53 {
#     geoip /geo.mmdb
#     dnssec
# }
# not supported by kdns: grpc:// is not supported by this version of kdns
# grpc://other.example {
#     whoami
# }
"""
    )
    (tmp_path / "Corefile").write_text(found)
    assert load(tmp_path / "Corefile", environ={}).blocks
    assert cut(found) == found


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("template ANY ANY a.example\n", "there is no Corefile that works"),
        (".:53 {\n    dnssec\n}\n", "there is no Corefile that works:\nCorefile:1: there is no server block"),
        (". { dnssec\n whoami\n}\n", "dnssec stands beside a brace; write it in lines of its own"),
    ],
)
def test_where_nothing_is_left_or_lines_are_shared_it_is_refused(text: str, told: str) -> None:
    with pytest.raises(KdnsError, match=re.escape(told)):
        cut(text)
