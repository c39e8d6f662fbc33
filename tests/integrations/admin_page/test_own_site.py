"""A project whose admin site is its own class: the page is there, and nothing else changes."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from tests.support.readme import ROOT, embed, run
from tests.support.servers import Server

SITE = """
from django.contrib.admin import AdminSite
from django.contrib.admin.apps import AdminConfig

class ShopSite(AdminSite):
    site_header = "The shop"

class ShopAdmin(AdminConfig):
    default_site = "shop.apps.ShopSite"
"""
ASK = """
from io import StringIO
from django.core.management import call_command

def said(*arguments, **options):
    out = StringIO()
    call_command(*arguments, stdout=out, **options)
    return out.getvalue()

unchanged = "No changes detected\\n"
assert said("makemigrations", check_changes=True, dry_run=True) == unchanged
assert "abs_orm_app" not in said("migrate")
assert said("makemigrations", check_changes=True, dry_run=True) == unchanged
assert said("migrate", check_unapplied=True) == ""

from django.contrib.auth.models import Permission, User
from django.test import Client
Permission.objects.get(content_type__app_label="abs_orm_app")  # there is one, and no other
client = Client()
client.force_login(User.objects.create_superuser("root"))
page = client.get("/admin/", headers={"host": "localhost"}).content.decode()
assert "The shop" in page and '/admin/abs_orm_app/pools/"' in page, page
"""


def test_a_projects_own_site_has_the_page_and_no_migration_is_missing(
    server: Server, tmp_path: Path
) -> None:
    def manage(*arguments: str) -> None:
        command = (sys.executable, "manage.py", *arguments)
        run(*command, cwd=tmp_path, DATABASE_URL=server.url, PYTHONPATH=str(ROOT))

    run(sys.executable, "-m", "django", "startproject", "shop", tmp_path, cwd=tmp_path)
    (tmp_path / "shop" / "apps.py").write_text(SITE)
    settings = tmp_path / "shop" / "settings.py"
    text = re.sub(
        """(["'])django.contrib.admin(["'])""", r"\1shop.apps.ShopAdmin\2", settings.read_text()
    )
    settings.write_text(text)
    embed(settings)

    manage("shell", "-c", ASK)

    # Uninstalled, as docs/upgrading.md says.
    settings.write_text(settings.read_text().replace('["abs_orm_app"]', "[]"))
    left = "select count(*) from django_content_type where app_label = 'abs_orm_app'"
    with server.admin() as admin:
        assert admin.execute(left).fetchone() == (1,)
        manage("remove_stale_contenttypes", "--include-stale-apps", "--no-input")
        assert admin.execute(left).fetchone() == (0,)
