"""Error reports that hide the address of the database, too.

Django hides a setting whose name holds PASS, SECRET or KEY. `runserver` puts the whole environment
into `request.META`, and DATABASE_URL, which holds a password, has none of these in its name.
"""

import re

from django.views.debug import SafeExceptionReporterFilter


class HideDatabaseURL(SafeExceptionReporterFilter):
    hidden_settings = re.compile(
        f"{SafeExceptionReporterFilter.hidden_settings.pattern}|DATABASE_URL", re.IGNORECASE
    )
