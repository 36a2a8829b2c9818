# What this repository can do; `make` alone lists it. Everything made goes to target/.
SHELL := /bin/bash

PREFIX ?= /usr/local
UNITS ?= $(PREFIX)/lib/systemd/system
CONF ?= /etc/ipipou
# Where an installer puts a tree together instead of installing it; usually empty.
DESTDIR ?=
# Kernel of `make demo` and `make bench`, and how long `make fuzz` runs each target.
KERNEL ?=
SECONDS_EACH ?= 60
# kernel or tun; empty: the demo shows the kernel's, the bench measures both, and a host with many
# links. ARGS: for native.sh.
DATAPATH ?=
ARGS ?=

target = $(or $(CARGO_TARGET_DIR),target)
binary = $(target)/release/ipipou
man = $(DESTDIR)$(PREFIX)/share/man/man8/ipipou.8
# fish looks below /etc, or ~/.config with CONF there; below /usr/local/share only in some sessions.
completions = $(DESTDIR)$(PREFIX)/share/bash-completion/completions/ipipou \
	$(DESTDIR)$(PREFIX)/share/zsh/site-functions/_ipipou \
	$(DESTDIR)$(patsubst %/,%,$(dir $(CONF)))/fish/completions/ipipou.fish

# Stops a target that cannot write to all of its places, before it has written to one of them.
writable = @for place in $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(UNITS) $(DESTDIR)$(CONF); do \
	while ! test -e "$$place"; do place=$$(dirname "$$place"); done; \
	test -w "$$place" || { echo "$@: $$place is not yours to write to: 'sudo make $@'," \
		"or give PREFIX or DESTDIR" >&2; exit 1; }; \
done

# Whether the units are those of a systemd that runs here.
systemd = test -z "$(DESTDIR)" -a -d /run/systemd/system
# It sees new units, and that old ones are gone, when it is told; it listens to root.
reload = ! $(systemd) || test "$$(id -u)" != 0 || systemctl daemon-reload

.PHONY: help build deb static test demo bench bare machines lint mutants fuzz install uninstall clean

help: ## this list
	@sed -n 's/^\([a-z]*\):[^#]*## /\1\t/p' Makefile | expand -t 12

build: ## the release binary, target/release/ipipou
	@tests/setup/packages.sh build
	@tests/setup/rust.sh cargo build --release --locked

deb: ## a package for Debian and Ubuntu, in target/debian/
	@packaging/deb.sh

static: ## a program that needs no library of the machine, and its crates' licences: target/static/
	@packaging/static.sh

test: ## everything: here, and on stock kernels in virtual machines; FULL=1: all on each kernel
	@tests/all.sh

demo: ## tunnels in network namespaces, explained step by step; DATAPATH=tun
	@tests/vm/demo.sh $(or $(DATAPATH),kernel) $(KERNEL)

bench: ## the speed, against other tunnels; DATAPATH=kernel or tun; writes target/bench/
	@case "$(or $(DATAPATH),both)" in \
	kernel) benches/run.sh $(KERNEL) ;; \
	tun) benches/native.sh $(ARGS) ;; \
	both) status=0; benches/run.sh $(KERNEL) || status=$$?; benches/native.sh $(ARGS) || status=$$?; \
	    benches/scale.sh || status=$$?; tests/setup/rust.sh cargo bench --bench engine || status=$$?; \
	    exit $$status ;; \
	*) echo "bench: DATAPATH is kernel or tun, not '$(DATAPATH)'" >&2; exit 2 ;; \
	esac

bare: ## the README's first commands and both packages in bare Debian 12 and 13: six roots in all
	@tests/setup/packages.sh test
	@tests/setup/bare.sh

machines: ## the guide's services on two emulated machines, also with the Python program
	@tests/setup/packages.sh test
	@tests/setup/machines.sh

lint: ## rustfmt, clippy, cargo-deny, shellcheck, black
	@tests/setup/lint.sh

mutants: ## small changes to the code that no test notices; ARGS for cargo-mutants
	@tests/setup/mutants.sh $(ARGS)

fuzz: ## the parsers against random input, SECONDS_EACH=60
	@tests/setup/fuzz.sh $(SECONDS_EACH)

install: ## to PREFIX=/usr/local, configuration examples to /etc/ipipou; needs `make build` before
	@test -x $(binary) || { echo "install: no $(binary): run 'make build' first" >&2; exit 1; }
	$(writable)
	install -D -m 755 $(binary) $(DESTDIR)$(PREFIX)/bin/ipipou
	@# Units and scripts name this path, and root's PATH looks there first: no older binary may stay.
	mkdir -p $(DESTDIR)$(PREFIX)/sbin
	test $(DESTDIR)$(PREFIX)/sbin -ef $(DESTDIR)$(PREFIX)/bin || \
		ln -sf ../bin/ipipou $(DESTDIR)$(PREFIX)/sbin/ipipou
	mkdir -p $(DESTDIR)$(UNITS) $(DESTDIR)$(CONF) $(dir $(man) $(completions))
	sed 's|/usr/local/bin/|$(PREFIX)/bin/|' ipipou@.service >$(DESTDIR)$(UNITS)/ipipou@.service
	install -m 644 ipipou.target $(DESTDIR)$(UNITS)/ipipou.target
	for file in etc/ipipou/*.conf etc/ipipou/hosts.json etc/ipipou/peer.toml; do \
		place=$(DESTDIR)$(CONF)/$${file##*/}; \
		case $$file in *.conf) mode=640 ;; *) mode=644 ;; esac; \
		test -e "$$place" || install -m $$mode "$$file" "$$place"; \
	done
	@# The files of peers of hub0.conf hold secrets.
	test -e $(DESTDIR)$(CONF)/hub0.peers.d || install -d -m 700 $(DESTDIR)$(CONF)/hub0.peers.d
	$(binary) generate man >$(man)
	set -- bash zsh fish; for place in $(completions); do \
		$(binary) generate "$$1" >"$$place" && shift; \
	done
	@$(reload)

uninstall: ## removes what install made, but for the configuration and the memory of tunnels
	$(writable)
	@$(systemd) || exit 0; listed() { systemctl "$$@" --plain --no-legend --full 'ipipou@*.service'; }; \
	for unit in $$(listed list-units --state=active,activating,reloading,deactivating | cut -d ' ' -f 1); do \
		echo "$@: $$unit runs, and goes on with the removed program until 'systemctl stop $$unit'" >&2; \
	done; \
	for unit in $$(listed list-unit-files --state=enabled,enabled-runtime | cut -d ' ' -f 1); do \
		case $$unit in ipipou@.service) ;; *) \
			echo "$@: $$unit is still enabled: 'systemctl disable $$unit'" >&2 ;; \
		esac; \
	done
	rm -f $(DESTDIR)$(PREFIX)/sbin/ipipou $(DESTDIR)$(PREFIX)/bin/ipipou $(man) $(completions) \
		$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/ipipou.fish \
		$(DESTDIR)$(UNITS)/ipipou@.service $(DESTDIR)$(UNITS)/ipipou.target
	@$(reload)
	@echo "$@: $(CONF) with its keys, and what tunnels remember in /var/lib/ipipou, stay"

clean: ## removes target/, virtual machines included
	@rm -rf target 2>/dev/null || { source tests/setup/lib.sh && need_root "remove target/" && as_root rm -rf target; }
