"""import: parts of a configuration from elsewhere.

## Name

*import* - puts a snippet or files in its place.

## Description

A snippet is a block whose one key is a name in parentheses. It is not a server block; it is put in wherever it is
imported, in any file that is read later. If there is no such snippet, the name is that of a file, or a pattern for
several files, relative to the importing file. *import* works within server blocks and outside of them, where it can
bring in whole server blocks or other snippets.

It is carried out before anything else, is allowed any number of times, and has no place in the order of plugins. A
file or snippet that would import itself, also by way of others, is refused.

## Syntax

```
import SNIPPET|FILE|PATTERN [ARGUMENTS...]
```

* **PATTERN** has at most one `*` and at most one `?`, which do not match a slash. Directories that match are left out.
  That nothing matches is no mistake. The files come in the order of their names.
* **ARGUMENTS**: in what is imported, `{args[0]}` stands for the first one, also within a word, `{args[1:3]}` for the
  second and third, `{args[:]}` for all of them; the latter two are words of their own.

## Metrics

None of its own.

## Examples

```corefile
(observed) {
    errors
    log . "{remote} {name} {type} {rcode}"
    prometheus {args[0]}
}

cluster.local:53 {
    import observed localhost:9153
    whoami
}

example.org:53 {
    import observed localhost:9153
    import /etc/kdns/custom/*.override
    whoami
}
```

## Differences from CoreDNS

Arguments are new. A directory that matches a pattern is left out; CoreDNS does not start then.

## See also

*reload*, which watches what was imported too.
"""

NAME = "import"
