"""Database URLs and their parts."""

from collections.abc import Iterator
from urllib.parse import quote

import dj_database_url
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from psycopg import pq

from abs_orm_app.config.address import POSTGIS, POSTGRESQL, Address, parse_url
from abs_orm_app.environment import SettingsError, database_from_env

CHARACTERS = st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffd")
TEXT = st.text(CHARACTERS, min_size=1, max_size=12)
HOST = st.one_of(
    st.from_regex(r"[a-zA-Z][a-zA-Z0-9.-]{0,8}", fullmatch=True),
    st.from_regex(r"/[a-zA-Z_ ]{1,8}(/[a-zA-Z%:@,?#]{1,4})?", fullmatch=True).filter(
        lambda path: "," not in path
    ),
    st.sampled_from(["::1", "fe80::1%eth0", "10.0.0.1"]),
)
PORT = st.integers(1, 65535).map(str)


@st.composite
def urls(draw: st.DrawFn) -> str:
    """A URL in which everything is encoded that must be."""

    def host() -> str:
        text = draw(HOST)
        text = f"[{quote(text, safe=':')}]" if ":" in text and text[0] != "/" else quote(text, "")
        return f"{text}:{draw(PORT)}" if with_ports else text

    with_ports = draw(st.booleans())
    hosts = ",".join(host() for _ in range(draw(st.integers(1, 3))))
    user, password, name = (quote(draw(TEXT), safe="") for _ in range(3))
    query = draw(st.dictionaries(st.sampled_from(["application_name", "options"]), TEXT))
    tail = "&".join(f"{key}={quote(text, safe='')}" for key, text in query.items())
    return f"postgresql://{user}:{password}@{hosts}/{name}" + (f"?{tail}" if tail else "")


def by_libpq(url: str) -> dict[str, str]:
    options = pq.Conninfo.parse(url.encode())
    words = {option.keyword.decode(): option.val.decode() for option in options if option.val}
    if not words.get("port", "").strip(","):  # as many empty ports as there are hosts
        words.pop("port", None)
    return words


def in_libpqs_words(address: Address) -> dict[str, str]:
    words = {
        "dbname": address.name,
        "user": address.user,
        "password": address.password,
        "host": address.host,
        "port": address.port,
    }
    return {key: text for key, text in {**words, **address.options}.items() if text}


@given(urls())
@example("postgresql://u:p@%2Ftmp%2FSockets:5433/db")
@example("postgresql://u:p@H1:1,[::1]:2,h3:3/db?sslmode=require&target_session_attrs=any")
@example("postgresql://u@/db?host=%2Ftmp&port=5433")
@example("postgresql://%C3%A9:%40%3A%2F%3F%23%25%5B%5D@h/db?application_name=007")
@example("postgresql://h/db?ssl=true")
@example("postgresql:///?service=reports")
@example("postgresql://h/db?user=u+v&password=s3cret+PW&application_name=a+b%2Bc")
@example("postgresql://u+v:p+w@h/d+b")
@example("postgresql://h/db?application_name=a;b")
@example("postgresql://h/db?user=u&password=p&connect_timeout=3")
def test_a_url_means_what_it_means_to_libpq(url: str) -> None:
    assert in_libpqs_words(parse_url(url)) == by_libpq(url)


# None of these letters is in our messages.
@given(st.text("ZQX:/?#@%[]&=,5 ", min_size=1, max_size=12))
@example("Z#Q")
@example("5/Q")
@example("5?Q")
@example("5#Q")
@example("@Z/Q")
@example("Z@Q?X")
@example("@Z:Q")
@example("[Z")
@example("%5Z%")
def test_an_unencoded_password_is_read_completely_or_refused_and_not_shown(password: str) -> None:
    try:
        address = parse_url(f"postgresql://user:{password}@host/name")
    except ValueError as error:
        assert not set(str(error)) & set("ZQX")  # noqa: PT017
    else:
        assert (address.user, address.host, address.name) == ("user", "host", "name")
    assert "Z" not in repr(Address(password=password))


def test_a_password_in_the_place_of_the_port_is_not_shown() -> None:
    with pytest.raises(ValueError, match="has a port that is not a number") as error:
        parse_url("postgres://user:s3cret/name")
    assert "s3cret" not in str(error.value)


@pytest.mark.parametrize(
    ("scheme", "engine"),
    [
        ("postgres", POSTGRESQL),
        ("postgresql", POSTGRESQL),
        ("PostgreSQL", POSTGRESQL),
        ("pgsql", POSTGRESQL),
        ("psql", POSTGRESQL),
        ("postgresql+asyncpg", POSTGRESQL),
        ("postgresql+psycopg", POSTGRESQL),
        ("postgresql+psycopg2", POSTGRESQL),
        ("postgres+asyncpg", POSTGRESQL),
        ("postgis", POSTGIS),
    ],
)
def test_the_schemes_of_django_and_sqlalchemy_name_one_of_two_engines(
    scheme: str, engine: str
) -> None:
    address = parse_url(f"{scheme}://u:p%40@h:1/n?currentSchema=app")
    assert address == Address(
        engine=engine,
        user="u",
        password="p@",
        host="h",
        port="1",
        name="n",
        options={"options": "-c search_path=app"},
    )


def test_other_users_of_dj_database_url_are_not_affected() -> None:
    for scheme in ("postgres", "postgresql", "pgsql"):
        engine = dj_database_url.parse(f"{scheme}://h/n")["ENGINE"]
        assert engine == "django.db.backends.postgresql"
    assert dj_database_url.parse("postgis://h/n")["ENGINE"].startswith("django.contrib.gis.")


@pytest.fixture
def postgres_of_another_app() -> Iterator[None]:
    before = dj_database_url.ENGINE_SCHEMES["postgres"]
    dj_database_url.register("postgres", "another.app")
    yield
    dj_database_url.ENGINE_SCHEMES["postgres"] = before


@pytest.mark.usefixtures("postgres_of_another_app")
def test_a_scheme_that_another_app_registered_still_means_our_engine() -> None:
    assert parse_url("postgres://h/n").engine == POSTGRESQL


@pytest.mark.parametrize(
    ("ssl", "sslmode"),
    [
        ("ssl=true", "require"),
        ("ssl=True", "require"),
        ("ssl=false", "disable"),
        *((f"ssl={mode}", mode) for mode in ("require", "verify-full", "prefer", "disable")),
        ("sslmode=verify-ca", "verify-ca"),
    ],
)
def test_asyncpgs_ssl_becomes_libpqs_sslmode(ssl: str, sslmode: str) -> None:
    assert parse_url(f"postgresql+asyncpg://h/n?{ssl}").options == {"sslmode": sslmode}


def test_values_of_the_query_stay_text() -> None:
    url = "postgres://h/n?application_name=007&options=-c%20a%3Dtrue&assume_role=true"
    assert parse_url(url).options == {
        "application_name": "007",
        "options": "-c a=true",
        "assume_role": "true",
    }


def test_hosts_without_a_port_get_the_default_port() -> None:
    assert parse_url("postgres://a,b:6000/n").port == "5432,6000"


def test_an_embedded_server_is_named_by_its_directory() -> None:
    assert parse_url("embedded:///.pgdata") == Address(embedded=".pgdata")
    assert parse_url("embedded:////srv/My%20data") == Address(embedded="/srv/My data")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("host=h dbname=n", "is not a URL like postgresql://USER:PASSWORD@HOST:PORT/NAME"),
        ('"postgres://h/n"', "begins with a quotation mark: remove it"),
        ("'postgres://h/n'", "begins with a quotation mark"),
        ("postgres://h/n # ours", "contains a comment: it needs a line of its own"),
        ("postgresql://USER:PASSWORD@HOST:PORT/NAME", "has a port that is not a number from 1 to"),
        ("mysql://h/n", "begins with mysql://; this app supports PostgreSQL only: postgresql://"),
        ("postgress://h/n", "begins with an unknown scheme (did you mean 'postgres'?); this"),
        ("s3cret://h/n", "begins with an unknown scheme; this app supports PostgreSQL only: "),
        *(
            (
                f"postgres://h:{port}/n",
                "has a port that is not a number from 1 to 65535; put an IPv6",
            )
            for port in ("x", "54a", "0", "-1", " 5", "65536", "9" * 5000)
        ),
        ("postgres://::1/n", "not a number from 1 to 65535; put an IPv6 address into brackets"),
        ("postgres://[::1/n", "has an invalid host: put an IPv6 address into brackets"),
        ("postgres://h/n?port=x", "gives port a value that is not a whole number from 1 to"),
        ("postgres://h/n?connect_timeout=1s", "gives connect_timeout a value that is not a whole"),
        ("postgres://u:p#w@h/n", "is ambiguous: percent-encode : / ? # @ in its user name and"),
        ("postgres://h/n?sslmod=require", "not know: number 1 (did you mean 'sslmode'?)."),
        ("postgres://h/n?pool_size=3&x=1", "not know: number 1 (pool_size), number 2."),
        ("postgres://h/n?sslmode=requires", "(did you mean 'require'?)"),
        ("postgres://h/n?ssl=ture", "gives sslmode a value that is not one of disable,"),
        ("postgres://h/n?sslmode=allow;user=x", "separates parameters by a semicolon: put &"),
        ("postgres://h/n;password=x", "has parameters after its name: put ? before the first"),
        ("postgres://h/n&password=x", "has parameters after its name: put ? before the first"),
        ("postgres://h/n password=x", "has parameters after its name: put ? before the first"),
        ("postgres://h/n?ssl=true&sslmode=require", "gives both ssl and sslmode"),
        ("postgres://h/n?sslmode=", "gives no value for its parameter number 1 (sslmode)"),
        ("postgres://h/n?sslmode=allow&x", "gives no value for its parameter number 2"),
        ("postgres://h/n?sslmode=allow&sslmode=require", "gives a parameter twice"),
        ("postgres://h/n?host=i", "gives two values for its host"),
        ("postgres://u:a@h/n?password=b", "gives two values for its password"),
        ("postgres://h/n?options=-cx&currentSchema=y", "gives both currentSchema and options"),
        ("postgres://u:%FF@h/n", "holds a percent-encoding that is not UTF-8 text"),
        ("postgres://u:a%00b@h/n", "holds a percent-encoding that is not UTF-8 text"),
        ("embedded://pgdata", "is not like embedded:///RELATIVE/DIR or embedded:////ABSOLUTE/DIR"),
        ("embedded:///", "is not like embedded:///RELATIVE/DIR"),
        ("embedded:///pgdata?x=1", "is not like embedded:///RELATIVE/DIR"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_in_one_sentence(url: str, message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        parse_url(url)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


# In parts


@pytest.mark.parametrize("name", ["DB_HOST", "DB_NAME", "DB_USER", "DB_PORT", "DB_POOL_SIZE"])
@pytest.mark.parametrize(
    "url",
    ["postgres://u:s3cret@h/db", "u:s3cret@h/db", "://s3cret", "u:s3/cret,@h", "u:x,s3cret@h/db"],
)
def test_a_url_in_the_place_of_another_value_is_refused_without_being_shown(
    name: str, url: str
) -> None:
    with pytest.raises(SettingsError) as error:
        database_from_env(environ={"DB_NAME": "n", name: url})
    assert str(error.value).startswith(f"{name} ")
    assert "cret" not in str(error.value)


@pytest.mark.parametrize("host", ["localhost:5433", "a,b:5433", "[::1]", "[::1]:5433", "app@h"])
def test_a_host_with_a_port_or_user_is_refused(host: str) -> None:
    with pytest.raises(SettingsError, match=r"more than a host: .* a port into DB_PORT; an IPv6"):
        database_from_env(environ={"DB_NAME": "n", "DB_HOST": host})


@pytest.mark.parametrize(
    "host", ["db", "a,b", "::1,fe80::1%eth0", "10.0.0.1", "/run/p:g@x", "@abstract", "h,/run,@x:1"]
)
def test_each_kind_of_host_is_accepted_unchanged(host: str) -> None:
    given = {"DB_NAME": "shop@test", "DB_USER": "app@azure", "DB_HOST": f" {host} "}
    assert database_from_env(environ=given)["HOST"] == host
